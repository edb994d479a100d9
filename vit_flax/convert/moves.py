"""The application of a table of rules: one rule per tensor, one write per parameter, or a list of all faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from vit_flax.convert.rules import ConversionError, Drop, Rule, match_template


class Tensors(Protocol):
    """Named arrays that are read one at a time."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, known without reading it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor as a NumPy array."""
        ...


@dataclasses.dataclass(frozen=True)
class Fate:
    """What becomes of one source tensor: a target path, a reason for dropping it, or neither ('unexpected')."""

    name: str
    shape: tuple[int, ...]
    target: str | None = None
    operation: str = ""
    dropped: str = ""

    def __str__(self) -> str:
        """Says it in a few words."""
        if self.target:
            return f"-> {self.target} ({self.operation})"
        return f"dropped: {self.dropped}" if self.dropped else "unexpected"


class Change(Protocol):
    """The resize of a parameter that is stored in another size than the model's."""

    stored_shape: tuple[int, ...]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Returns the array in the model's size."""
        ...


@dataclasses.dataclass(frozen=True)
class Move:
    """The conversion of one parameter from its tensors."""

    rule: Rule
    names: tuple[str, ...]  # of the tensors it takes
    change: Change | None = None

    def __call__(self, tensors: Tensors) -> np.ndarray:
        """Returns the parameter."""
        array = self.rule.operation.forward(*(tensors.read(name) for name in self.names))
        return array if self.change is None else self.change(array)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The conversion of a checkpoint: a move for every parameter, or the problems."""

    moves: Mapping[str, Move]  # by the parameter's path
    fates: Sequence[Fate]
    problems: Sequence[str]


def plan(
    shapes: Mapping[str, tuple[int, ...]],
    rules: Iterable[Rule | Drop],
    expected: Mapping[str, tuple[int, ...]],
    changes: Mapping[str, Change] = MappingProxyType({}),
) -> Plan:
    """Finds the one rule for every tensor and the tensors for every expected parameter.

    Args:
        shapes: shape of every source tensor.
        rules: the layout's table.
        expected: shape of every parameter of the model, by path.
        changes: how parameters of another size come to the model's, by path.
    """
    rules = list(rules)
    fates, problems = [], []
    for name, shape in shapes.items():
        hits = [(r, t, b) for r in rules for t in _templates(r) if (b := match_template(t, name)) is not None]
        hits = [hit for hit in hits if not (isinstance(hit[0], Drop) and hit[0].otherwise)] or hits
        if len(hits) > 1:
            problems.append(f"ambiguous: {name} matches {' and '.join(t for _, t, _ in hits)}")
        rule, _, bindings = hits[0] if hits else (None, None, {})
        if isinstance(rule, Drop):
            if rule.restored is not None and rule.restored.shape != tuple(shape):
                problems.append(f"misshapen: {name} is {_shape(shape)}, expected {_shape(rule.restored.shape)}")
            fates.append(Fate(name, shape, dropped=rule.reason))
        elif isinstance(rule, Rule) and (target := rule.target.format(**bindings)) in expected:
            resized = f"; resized {changes[target]}" if target in changes else ""
            fates.append(Fate(name, shape, target, f"{rule.operation.name}{resized}"))
        else:
            fates.append(Fate(name, shape))
            why = f" (the model has no {rule.target.format(**bindings)})" if isinstance(rule, Rule) else ""
            problems.append(f"unexpected: {name} {_shape(shape)}{why}")

    moves: dict[str, Move] = {}
    for target, shape in expected.items():
        rule, names = sources_of(target, rules)
        change = changes.get(target)
        moves[target] = Move(rule, names, change)
        if change is not None and stored_shape(rule, names, shapes) == change.stored_shape:
            continue
        wanted = source_shapes(rule, shape if change is None else change.stored_shape)
        for name, want in zip(names, wanted, strict=True):
            if name not in shapes:
                problems.append(f"missing: {name} {_shape(want)}")
            elif tuple(shapes[name]) != want:
                problems.append(f"misshapen: {name} is {_shape(shapes[name])}, the model needs {_shape(want)}")
    return Plan(moves, fates, problems)


def sources_of(target: str, rules: Iterable[Rule | Drop]) -> tuple[Rule, tuple[str, ...]]:
    """Returns the rule that writes parameter `target` and the names of the tensors it takes.

    Raises:
        ConversionError: no rule of the layout writes it, or more than one does.
    """
    hits = [(r, b) for r in rules if isinstance(r, Rule) and (b := match_template(r.target, target)) is not None]
    if len(hits) != 1:
        raise ConversionError(f"{'no rule' if not hits else 'more than one rule'} of this layout holds {target}")
    rule, bindings = hits[0]
    return rule, tuple(template.format(**bindings) for template in rule.sources)


def to_params(
    tensors: Tensors, steps: Plan, finish: Callable[[np.ndarray], Any] = lambda array: array
) -> dict[str, Any]:
    """Moves tensors to parameter paths, one at a time.

    Args:
        tensors: the source.
        steps: what `plan` made of their shapes.
        finish: applied to each array as soon as it is in place (to put it on a device, say).

    Raises:
        ConversionError: lists every missing, unexpected, ambiguous and misshapen tensor.
    """
    if steps.problems:
        raise ConversionError(_listing("the tensors do not fit the model", steps.problems))
    # rule by rule, so that the rows of a stacked tensor are read in sequence
    order = {move.rule: number for number, move in enumerate(steps.moves.values())}
    moves = sorted(steps.moves.items(), key=lambda item: order[item[1].rule])

    with ThreadPoolExecutor(2) as pool:  # a copy is bound by one core, not by the memory's bandwidth
        return dict(pool.map(lambda item: (item[0], finish(item[1](tensors))), moves))


def to_tensors(params: Mapping[str, ArrayLike], rules: Iterable[Rule | Drop]) -> dict[str, np.ndarray]:
    """Moves parameters (by path) back to the layout's tensors.

    Raises:
        ConversionError: lists every parameter that the layout has no place for.
    """
    rules = list(rules)
    restored = {r.source: r.restored for r in rules if isinstance(r, Drop) and r.restored is not None}
    dtype = next((np.asarray(value).dtype for value in params.values()), np.float32)
    tensors = {n: array if array.dtype.kind == "i" else array.astype(dtype) for n, array in restored.items()}
    problems = []
    for path, value in params.items():
        try:
            rule, names = sources_of(path, rules)
            arrays = rule.operation.inverse(np.asarray(value))
        except ValueError as error:
            problems.append(f"cannot hold {path} {_shape(np.shape(value))}: {error}")
            continue
        tensors.update((name, np.asarray(array, order="C")) for name, array in zip(names, arrays, strict=True))
    if problems:
        raise ConversionError(_listing("the layout cannot hold this model", problems))
    return tensors


def _templates(rule: Rule | Drop) -> tuple[str, ...]:
    return (rule.source,) if isinstance(rule, Drop) else rule.sources


def source_shapes(rule: Rule, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the shape of every tensor that a parameter of this shape is made of."""
    # a broadcast scalar has the shape without its memory
    probe = np.broadcast_to(np.zeros((), np.int8), shape)
    return [array.shape for array in rule.operation.inverse(probe)]


def stored_shape(rule: Rule, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of the parameter that tensors of these shapes make; () where they are missing or misshapen."""
    try:
        probes = [np.broadcast_to(np.zeros((), np.int8), shapes[name]) for name in names]
        return rule.operation.forward(*probes).shape
    except (KeyError, ValueError):  # reported with everything else
        return ()


def _shape(shape: Iterable[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _listing(headline: str, problems: Iterable[str]) -> str:
    order = ("missing", "unexpected", "ambiguous", "misshapen", "cannot")
    problems = sorted(problems, key=lambda p: order.index(p.split(":")[0].split(" ")[0]))
    shown = problems[:50]
    more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    return "\n  ".join([f"{headline} ({len(problems)} problems):", *shown, *more])
