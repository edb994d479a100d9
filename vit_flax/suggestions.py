"""Suggestions for an unknown name: the nearest known ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Returns up to `count` known names like a misspelt one: those that begin with it, then the nearest.

    Case is ignored, and hyphens equal underscores.
    """
    plain = {_plain(candidate): candidate for candidate in known}
    begun = [candidate for candidate in plain if len(name) > 2 and candidate.startswith(_plain(name))]
    near = dict.fromkeys([*begun, *difflib.get_close_matches(_plain(name), plain, count, cutoff)])
    return [plain[candidate] for candidate in near][:count]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def suggest(name: str, known: Iterable[str], otherwise: str = "", count: int = 1) -> str:
    """Returns "did you mean 'x'?" with the nearest of the known names, or `otherwise` where none is near."""
    near = nearest(name, known, count)
    return did_you_mean(near) if near else otherwise


def did_you_mean(names: Iterable[str]) -> str:
    """Returns "did you mean 'x' or 'y'?"."""
    return f"did you mean {' or '.join(map(repr, names))}?"
