"""The rule engine: a layout is a table of rules, and each rule serves both directions.

A rule pairs name templates (`blocks.{i}.norm{n}.weight` <-> `blocks_{i}/norm{n}/scale`) and an invertible array
operation. Values are moved, never computed. NumPy only.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

Bindings = dict[str, str]


class ConversionError(ValueError):
    """A checkpoint cannot be read or written as asked; the message names every tensor or field at fault."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """An invertible array operation: `forward` maps the source arrays to the target's, `inverse` maps it back."""

    name: str
    forward: Callable[..., np.ndarray]
    inverse: Callable[[np.ndarray], tuple[np.ndarray, ...]]


IDENTITY = Operation("as it is", lambda a: a, lambda a: (a,))
DENSE = Operation("(out, in) -> (in, out)", lambda a: _rank(a, 2).T, lambda a: (_rank(a, 2).T,))
UNBATCHED = Operation("(n, d) -> (1, n, d)", lambda a: _rank(a, 2)[None], lambda a: (_rank(a, 3)[0],))
VECTOR = Operation("(d) -> (1, 1, d)", lambda a: _rank(a, 1)[None, None], lambda a: (_rank(a, 3)[0, 0],))
CONV = Operation(
    "OIHW -> HWIO", lambda a: _rank(a, 4).transpose(2, 3, 1, 0), lambda a: (_rank(a, 4).transpose(3, 2, 0, 1),)
)
ROW = Operation("(1, D) -> (1, 1, D)", lambda a: _rank(a, 2)[:, None], lambda a: (_rank(a, 3)[:, 0],))


def patch_linear(chans: int, patch_size: tuple[int, int]) -> Operation:
    """Reshapes a Linear over patches in torch.nn.Unfold's order (channel, row, column) to a convolution kernel."""
    height, width = patch_size
    return Operation(
        "(out, C p p) -> (p, p, C, out)",
        lambda a: _rank(a, 2).reshape(a.shape[0], chans, height, width).transpose(2, 3, 1, 0),
        lambda a: (_rank(a, 4).transpose(3, 2, 0, 1).reshape(a.shape[3], -1),),
    )


def grid_rows(grid: tuple[int, int]) -> Operation:
    """Returns the move of a table by row and column of a grid, or of a square of another size, to one by patch."""

    def back(array: np.ndarray) -> tuple[np.ndarray]:
        rows = _rank(array, 3).shape[1]
        height, width = grid if rows == math.prod(grid) else (math.isqrt(rows), -1)
        return (array.reshape(1, height, width, array.shape[-1]),)

    return Operation("(1, H, W, D) -> (1, H W, D)", lambda a: _rank(a, 4).reshape(1, -1, a.shape[-1]), back)


def join(*shares: int) -> Operation:
    """Concatenates several biases, sized in proportion to `shares` (1, 1, 1 for q, k and v)."""
    return Operation("joined", lambda *parts: np.concatenate(parts, -1), functools.partial(_split, shares))


def join_dense(*shares: int) -> Operation:
    """Concatenates several Linear weights, (out, in) each, to one kernel (in, sum of outs)."""
    return Operation(
        "(out, in) each -> (in, sum of outs)",
        lambda *parts: np.concatenate([_rank(part, 2).T for part in parts], -1),
        lambda a: tuple(part.T for part in _split(shares, _rank(a, 2))),
    )


def join_heads(heads: int) -> Operation:
    """Concatenates queries, keys and values, ([in,] heads, width) each, to ([in,] 3 D)."""
    return Operation(
        "(in, heads, width) each -> (in, 3 D)",
        lambda *parts: np.concatenate([part.reshape(*part.shape[:-2], -1) for part in parts], -1),
        lambda a: tuple(part.reshape(*part.shape[:-1], heads, -1) for part in _split((1, 1, 1), a)),
    )


def merge_heads(heads: int) -> Operation:
    """Reshapes an output projection (heads, width, out) to a kernel (D, out)."""
    return Operation(
        "(heads, width, out) -> (D, out)",
        lambda a: _rank(a, 3).reshape(-1, a.shape[-1]),
        lambda a: (_rank(a, 2).reshape(heads, -1, a.shape[-1]),),
    )


def _split(shares: tuple[int, ...], array: np.ndarray) -> tuple[np.ndarray, ...]:
    if array.shape[-1] % sum(shares):
        raise ValueError(f"width {array.shape[-1]} does not divide by {sum(shares)}")
    unit = array.shape[-1] // sum(shares)
    return tuple(np.split(array, np.cumsum(shares)[:-1] * unit, -1))


def _rank(array: np.ndarray, rank: int) -> np.ndarray:
    if array.ndim != rank:
        raise ValueError(f"{array.ndim} axes instead of {rank}")
    return array


@dataclasses.dataclass(frozen=True)
class Rule:
    """Moves the tensors named by `source` (one template or several) to the parameter named by `target`."""

    source: str | tuple[str, ...]
    target: str
    operation: Operation = IDENTITY

    @property
    def sources(self) -> tuple[str, ...]:
        """The source templates, always as a tuple."""
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclasses.dataclass(frozen=True)
class Drop:
    """Leaves the tensors named by `source` out, for a reason that `inspect` prints."""

    source: str
    reason: str
    restored: np.ndarray | None = None  # written under this name on the way back; only for a name without placeholders
    otherwise: bool = False  # counts only where no other rule matches


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    # {i} stands for a number, {rest} for all that follows, any other name for a word; a name that comes twice must
    # match the same text
    parts, seen = [], set()
    for literal, name in re.findall(r"([^{]*)(?:\{(\w+)\})?", template):
        parts.append(re.escape(literal))
        if name:
            word = {"i": r"\d+", "rest": r".+"}.get(name, r"[A-Za-z0-9_]+?")
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{word})")
            seen.add(name)
    return re.compile("".join(parts))


def match_template(template: str, name: str) -> Bindings | None:
    """Returns the template's placeholders bound to parts of `name`, or None when it does not match."""
    found = _pattern(template).fullmatch(name)
    return found.groupdict() if found else None


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
    """The resizing of a parameter that is stored in another size than the model's."""

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
