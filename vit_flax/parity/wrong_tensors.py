"""Wrong conversions: tensors changed as a wrong rule would change them, to prove that a test can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

Tensors: TypeAlias = Mapping[str, np.ndarray]
Change: TypeAlias = Callable[[Tensors], dict[str, np.ndarray]]
ArrayChange: TypeAlias = Callable[[np.ndarray], np.ndarray]
Wrong: TypeAlias = Change | Mapping[str, Any]  # a change of the tensors, or other values of the config


def changed(needle: str, change: ArrayChange) -> Change:
    """Returns the mutation of every tensor whose name contains `needle`; it raises ValueError where none does."""

    def mutate(tensors: Tensors) -> dict[str, np.ndarray]:
        if not any(needle in name for name in tensors):
            raise ValueError(f"no tensor's name contains {needle!r}: this mutation would change nothing")
        return {name: change(array) if needle in name else array for name, array in tensors.items()}

    return mutate


def exchanged(first: str, second: str) -> Change:
    """Returns the mutation that exchanges tensors whose names differ by `first` and `second` only.

    It raises ValueError where no two do.
    """

    def exchange(tensors: Tensors) -> dict[str, np.ndarray]:
        pairs = {name: name.replace(first, second) for name in tensors if first in name}
        pairs = {name: other for name, other in pairs.items() if other in tensors}
        if not pairs:
            raise ValueError(f"no tensors differ by {first!r} and {second!r}: this mutation would change nothing")
        back = {other: name for name, other in pairs.items()}
        return {name: tensors[pairs.get(name, back.get(name, name))] for name in tensors}

    return exchange


def thirds_swapped(needle: str, first: int = 0, second: int = 1) -> Change:
    """Returns the mutation that swaps two of q, k, v in the fused tensors whose names contain `needle`."""

    def swap(array: np.ndarray) -> np.ndarray:
        parts = np.split(array, 3)
        parts[first], parts[second] = parts[second], parts[first]
        return np.concatenate(parts)

    return changed(needle, swap)


def transposed_patches(height: int, width: int, chans: int) -> ArrayChange:
    """Returns the change of a kernel (out, C p p) to one that reads patches as (p, p, C)."""
    return lambda a: a.reshape(-1, chans, height, width).transpose(0, 2, 3, 1).reshape(a.shape)
