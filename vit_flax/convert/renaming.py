"""Renames tensors from transformers' names in files to those in memory, and back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator

from vit_flax.convert.huggingface_tables import HUGGINGFACE_LAYOUTS
from vit_flax.convert.layout import Layout
from vit_flax.convert.rules import Rule, match_template

_MEMORY = "_memory"


@dataclasses.dataclass(frozen=True)
class _Spelling:
    prefixes: tuple[str, ...]
    rules: tuple[Rule, ...]


def same_tensor(names: Collection[str], wanted: str) -> str | None:
    """Returns which of the names is the tensor `wanted`, by that name or by another spelling of it."""
    if wanted in names:
        return wanted
    for theirs, ours in _pairs():
        for prefix in ("", *theirs.prefixes):
            if wanted.startswith(prefix):
                for name in _translated(wanted.removeprefix(prefix), theirs, ours):
                    found = next((p + name for p in (prefix, "", *ours.prefixes) if p + name in names), None)
                    if found is not None:
                        return found
    return None


@functools.cache
def _pairs() -> tuple[tuple[_Spelling, _Spelling], ...]:
    layouts = {x.name: x for x in HUGGINGFACE_LAYOUTS}
    both = [
        (_spelling(layouts[name + _MEMORY]), _spelling(layout))
        for name, layout in layouts.items()
        if name + _MEMORY in layouts
    ]
    return (*both, *((ours, theirs) for theirs, ours in both))


def _spelling(layout: Layout) -> _Spelling:
    rules = layout.rules(layout.config_class())
    return _Spelling(layout.prefixes, tuple(rule for rule in rules if isinstance(rule, Rule)))


def _translated(name: str, theirs: _Spelling, ours: _Spelling) -> Iterator[str]:
    for rule in theirs.rules:
        for place, template in enumerate(rule.sources):
            if (bindings := match_template(template, name)) is None:
                continue
            target = rule.target.format(**bindings)
            for own in ours.rules:
                if (values := match_template(own.target, target)) is not None and len(own.sources) == len(rule.sources):
                    yield own.sources[place].format(**values)
