"""Pillow's resampling weights, for programs that run without Pillow.

Pillow resizes bytes in fixed point, one axis after the other, and rounds to bytes after each.

Reference: Pillow's src/libImaging/Resample.c and Geometry.c.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int32

from vit_flax.preprocessing.decode import import_pillow

_BITS = 22


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _hamming(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0)


_FILTERS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _triangle),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _cubic),
    "lanczos": (3.0, _lanczos),
}


def byte_weights(old: int, new: int, interpolation: str) -> tuple[Int32[np.ndarray, "new old"], int]:
    """Returns the fixed-point weights of one axis for bytes, and the number of their fraction bits."""
    support, function = _FILTERS[interpolation]
    scale = old / new
    stretch = max(scale, 1.0)
    matrix = np.zeros((new, old), np.int32)
    for row in range(new):
        centre = (row + 0.5) * scale
        first = max(int(centre - support * stretch + 0.5), 0)
        last = min(int(centre + support * stretch + 0.5), old)
        weights = function((np.arange(first, last) - centre + 0.5) / stretch)
        weights = weights / weights.sum() if weights.sum() else weights
        matrix[row, first:last] = np.trunc(weights * (1 << _BITS) + np.where(weights < 0, -0.5, 0.5))
    return matrix, _BITS


def nearest(old: int, new: int) -> np.ndarray:
    """Returns the source row of each output row, as Pillow computes it."""
    module = import_pillow()
    rows = module.fromarray(np.arange(old, dtype=np.int32)[:, None])
    return np.asarray(rows.resize((1, new), module.Resampling.NEAREST))[:, 0]


def goes_down_first(old: tuple[int, int], new: tuple[int, int], interpolation: str) -> bool:
    """Returns whether the installed Pillow resizes the height before the width, as later versions may.

    The answer comes from resizing a random image both ways.

    Raises:
        ValueError: Pillow's result is that of neither order.
    """
    module = import_pillow()
    image = np.random.default_rng(0).integers(0, 256, old).astype(np.uint8)
    method = getattr(module.Resampling, interpolation.upper())
    found = np.asarray(module.fromarray(image).resize(new[::-1], method))
    for order in ((1, 0), (0, 1)):
        result = image
        for axis in order:
            result = _resized(result, new[axis], axis, interpolation)
        if np.array_equal(result, found):
            return order[0] == 0
    raise ValueError(f"this version of Pillow resizes {interpolation} otherwise than is known here: {old} to {new}")


def _resized(image: np.ndarray, new: int, axis: int, interpolation: str) -> np.ndarray:
    if image.shape[axis] == new:
        return image
    weights, bits = byte_weights(image.shape[axis], new, interpolation)
    sums = np.tensordot(weights.astype(np.int64), image.astype(np.int64), (1, axis)) + (1 << bits >> 1)
    return np.moveaxis(np.clip(sums >> bits, 0, 255), 0, axis)
