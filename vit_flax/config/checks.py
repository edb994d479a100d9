"""Checks that configs share; each raises ValueError naming the field and what it got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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


def integers(name: str, value: object, minimum: int) -> tuple[int, ...]:
    """Returns the integers of a sequence, or of one of them, each at least `minimum`."""
    found: list[Any] = list(value) if isinstance(value, tuple | list) else [value]
    for item in found:
        require_int(name, item, minimum)
    return tuple(found)


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses what is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def require_number(name: str, value: object, minimum: float = 0.0) -> None:
    """Refuses what is no finite number of at least `minimum`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not minimum <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least {minimum:g}, got {value!r}")


def require_positive(name: str, value: object) -> None:
    """Refuses what is no finite number above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")


def require_share(name: str, value: object, one: bool = True) -> None:
    """Refuses what is no number in 0..1; without `one`, 1 as well."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1 or (value == 1 and not one):
        raise ValueError(f"{name} must be in 0..1, got {value!r}")
