"""The rules that layouts are tables of, each of which serves both directions.

A rule pairs name templates (`blocks.{i}.norm{n}.weight` <-> `blocks_{i}/norm{n}/scale`) and an invertible array
operation. Values are moved, never computed. NumPy only.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import numpy as np

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
