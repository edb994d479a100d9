"""Checks that the parts of a config share; each raises ValueError naming the field and what it got."""

from __future__ import annotations

from collections.abc import Sequence

Pair = tuple[int, int]


def pair(name: str, value: int | Sequence[int]) -> Pair:
    """Returns (height, width) of a pair or of one number for both."""
    found = (value, value) if isinstance(value, int) else tuple(value)
    if len(found) != 2 or not all(isinstance(v, int) and v > 0 for v in found):
        raise ValueError(f"{name} must be a positive integer or a pair (height, width) of them, got {value!r}")
    return found  # pyright: ignore[reportReturnType]


def require_int(name: str, value: object, minimum: int) -> None:
    """Refuses what is no integer of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses what is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
