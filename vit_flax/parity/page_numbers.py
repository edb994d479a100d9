"""The page's number formats."""

from __future__ import annotations

import math
from collections.abc import Iterable

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SPACE, _THIN = "\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}"


def power_of_ten(exponent: int) -> str:
    """Formats a power of ten by its exponent: 10⁻⁹ for -9."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def scientific(value: float) -> str:
    """Formats a number with two digits and its power of ten: 1.3 × 10⁻¹¹."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    if int(exponent) in (-1, 0, 1):
        return f"{value:.2g}"
    return f"{mantissa}{_THIN}×{_THIN}{power_of_ten(int(exponent))}"


def compact(value: float | None) -> str:
    """Formats a number of a table: 1.3e-11, or a dash for None."""
    if value is None:
        return "–"
    return f"{value:.1e}" if value else "0"


def shape_text(shape: Iterable[int]) -> str:
    """Formats a shape: 32 × 17 × 48, or 'one number' for a scalar."""
    return f"{_SPACE}×{_SPACE}".join(map(str, shape)) or f"one{_SPACE}number"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Returns '1 step' or '10 steps'; `nouns` is an irregular plural."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
