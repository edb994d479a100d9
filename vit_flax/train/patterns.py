"""Ordered (pattern, value) lists over the paths of parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from vit_flax.suggestions import did_you_mean, nearest

T = TypeVar("T")
_SHOWN = 10


def paths_of(params: PyTree) -> list[str]:
    """Returns the paths of a tree of parameters, such as 'blocks_0/attn/qkv/kernel'."""
    return list(flatten_dict(params, sep="/"))


def assign(rules: Sequence[tuple[str, T]], paths: Iterable[str]) -> dict[str, T]:
    """Returns each path's value: that of the first rule whose regular expression matches the whole path.

    Raises:
        ValueError: a path matches no rule, or a pattern is no regular expression.
    """
    compiled = [(_compile(pattern), value) for pattern, value in rules]
    found: dict[str, T] = {}
    missed = []
    for path in paths:
        for pattern, value in compiled:
            if pattern.fullmatch(path):
                found[path] = value
                break
        else:
            missed.append(path)
    if missed:
        more = f" and {len(missed) - _SHOWN} more" if len(missed) > _SHOWN else ""
        raise ValueError(f"no rule matches {', '.join(missed[:_SHOWN])}{more}; end the list with ('.*', value)")
    return found


def assign_tree(rules: Sequence[tuple[str, T]], params: PyTree) -> PyTree:
    """Returns a tree like `params` with each parameter's value; see `assign`."""
    return unflatten_dict(assign(rules, paths_of(params)), sep="/")


def select(patterns: Sequence[str], paths: Iterable[str]) -> set[str]:
    """Returns the paths that one of the patterns matches whole.

    Raises:
        ValueError: a pattern matches none, so it is misspelt.
    """
    paths = list(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        compiled = _compile(pattern)
        matched = {path for path in paths if compiled.fullmatch(path)}
        if not matched:
            raise ValueError(f"pattern {pattern!r} matches no parameter; {_hint(pattern, paths)}")
        chosen |= matched
    return chosen


def _hint(pattern: str, paths: Sequence[str]) -> str:
    """Returns the names that a pattern may have meant, and the top-level names of parameters."""
    words = dict.fromkeys(part for path in paths for part in path.split("/"))
    unknown = [word for word in re.findall(r"[A-Za-z_][A-Za-z_0-9]{2,}", pattern) if word not in words]
    near = dict.fromkeys(found for word in unknown for found in nearest(word, words))
    tops = f"they begin with {', '.join(sorted({path.split('/')[0] for path in paths}))}"
    return f"{did_you_mean(near)} {tops}" if near else tops


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
