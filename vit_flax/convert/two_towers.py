"""Two-tower layouts: the layout of an image tower, joined with the rules of a text tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from vit_flax.config import TwoTowersConfig, TwoTowersFamily
from vit_flax.config.two_towers import LOGIT_BIAS, TEXT
from vit_flax.convert.layout import Layout, Shapes
from vit_flax.convert.rules import Drop, Operation, Rule

Value = TypeVar("Value")
SUFFIX = "_with_text"  # of such a layout's name, after that of its image tower's
SCALAR = Operation("(1) -> ()", lambda a: a.reshape(()) if a.size == 1 else a, lambda a: (a.reshape(1),))
IMAGE = "image/"  # of parameters' paths


@dataclasses.dataclass(frozen=True)
class TextHalf:
    """The text tower's half of a layout, with the logits' scale and bias.

    Fields of the config have their names without `text_`, beside `logit_bias`.
    """

    evidence: Callable[[Collection[str]], str | None]
    # infers fields of both towers from shapes, given the known ones of both
    infer: Callable[[Shapes, Mapping[str, object]], Mapping[str, object]]
    rules: Callable[[TwoTowersConfig], tuple[Rule | Drop, ...]]
    required: tuple[str, ...]  # fields that shapes may not determine
    fixed: Mapping[str, tuple[object, ...]]  # the only values of a field that the layout can hold
    outside: tuple[str, ...] = ()  # prefix of its tensors' names
    hint: str = ""
    conditions: Callable[[TwoTowersConfig], list[str]] = lambda config: []
    config_file: Callable[[TwoTowersConfig], Mapping[str, object]] | None = None
    components: Callable[[TwoTowersConfig], tuple[tuple[str, str], ...]] = lambda config: ()


def text_fields(fields: Mapping[str, Value]) -> dict[str, Value]:
    """Returns a text tower's fields under `text_` names."""
    return {name if name == LOGIT_BIAS else TEXT + name: value for name, value in fields.items()}


def moved(rules: Iterable[Rule], source: str, target: str) -> tuple[Rule, ...]:
    """Returns rules with the prefix `source` for tensors and `target` for parameters."""
    return tuple(
        dataclasses.replace(rule, source=tuple(source + name for name in rule.sources), target=target + rule.target)
        for rule in rules
    )


def with_text(image: Layout, half: TextHalf, beside: Collection[Drop], name: str, description: str) -> Layout:
    """Returns the layout of a model whose image tower is `image`'s.

    Args:
        image: the image tower's layout.
        half: the text tower.
        beside: rules of `image` that leave the text tower out.
        name: of the new layout.
        description: of it.
    """
    left = {drop.source for drop in beside}

    def rules(config: Any) -> tuple[Rule | Drop, ...]:
        own = [rule for rule in image.rules(config.image) if not (isinstance(rule, Drop) and rule.source in left)]
        towers = moved((rule for rule in own if isinstance(rule, Rule)), "", IMAGE)
        return (*towers, *(rule for rule in own if isinstance(rule, Drop)), *half.rules(config))

    def infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
        return {**image.infer(shapes, known), **text_fields(half.infer(shapes, known))}

    def evidence(names: Collection[str]) -> str | None:
        told = [(image.belongs or image.evidence)(names), half.evidence(names)]
        return " and ".join(map(str, told)) if all(told) else None

    def components(config: Any) -> tuple[tuple[str, str], ...]:
        return (*((a, IMAGE + b) for a, b in image.components(config.image)), *half.components(config))

    def conditions(config: Any) -> list[str]:
        return [*image.conditions(config.image), *half.conditions(config)]

    first, *later = image.required or ((),)
    file = half.config_file
    return dataclasses.replace(
        image,
        name=name,
        description=description,
        config_class=TwoTowersFamily(image.config_class),  # pyright: ignore[reportArgumentType]
        evidence=lambda names: image.evidence(names) and evidence(names),
        belongs=evidence,
        infer=infer,
        rules=rules,
        required=((*first, *text_fields(dict.fromkeys(half.required))), *later),
        fixed={**image.fixed, **text_fields(half.fixed)},
        components=components,
        conditions=conditions,
        hint=half.hint or image.hint,
        resample=lambda config: image.resample(config.image),  # pyright: ignore[reportAttributeAccessIssue]
        prefix=lambda config: next(iter(image.prefixes), ""),
        outside=(*image.outside, *half.outside),
        config_file=file and (lambda config: file(config)),  # pyright: ignore[reportArgumentType]
        heads=(),
        classifier=lambda config: {},
    )


def holds_text(layout: Layout) -> bool:
    """Returns whether a layout is of an image tower and a text tower."""
    return isinstance(layout.config_class, TwoTowersFamily)


def is_of_text(name: str) -> bool:
    """Returns whether a field is a text tower's, where those of an image tower stand beside it."""
    return name.startswith(TEXT) or name == LOGIT_BIAS
