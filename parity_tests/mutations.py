"""Wrong conversions, applied one at a time to prove that the tests would see them.

A mutation is either overrides of the config, or a function that changes the tensors as a wrong rule would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]
Mutation = Mapping[str, Any] | Callable[[Tensors], Tensors]


def thirds_swapped(needle: str, first: int = 0, second: int = 1) -> Callable[[Tensors], Tensors]:
    """Returns the mutation that swaps two of q, k, v in the fused tensors whose names hold `needle`."""

    def swap(array: np.ndarray) -> np.ndarray:
        parts = np.split(array, 3)
        parts[first], parts[second] = parts[second], parts[first]
        return np.concatenate(parts)

    return changed(needle, swap)


def exchanged(first: str, second: str) -> Callable[[Tensors], Tensors]:
    """Returns the mutation that exchanges tensors whose names differ by `first` and `second` only."""

    def exchange(tensors: Tensors) -> Tensors:
        mutated = dict(tensors)
        names = [name for name in tensors if first in name and name.replace(first, second) in tensors]
        assert names, f"no tensor named {first}"
        for name in names:
            mutated[name], mutated[name.replace(first, second)] = tensors[name.replace(first, second)], tensors[name]
        return mutated

    return exchange


def changed(needle: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], Tensors]:
    """Returns the mutation that changes the tensors whose names hold `needle`."""

    def mutate(tensors: Tensors) -> Tensors:
        assert any(needle in name for name in tensors), f"no tensor named {needle}"
        return {name: change(array) if needle in name else array for name, array in tensors.items()}

    return mutate


def transposed_patches(height: int, width: int, chans: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the change of a (out, C p p) kernel to one that reads patches as (p, p, C)."""
    return lambda a: a.reshape(-1, chans, height, width).transpose(0, 2, 3, 1).reshape(a.shape)
