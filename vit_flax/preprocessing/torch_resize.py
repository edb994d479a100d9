"""torchvision's resizing of tensors, the default of transformers' processors.

torch antialiases as Pillow does; bytes are resized in fixed point with weights of at most 15 bits, where Pillow has 22,
so single pixels of the two differ by a grey level.

Reference: torch's upsample_bilinear2d_aa and upsample_bicubic2d_aa on the CPU, and nearest-exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int32

_BLOCK = 32  # output rows computed together: they read nearly the same input rows
_MAX_BITS = 22


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


_FILTERS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, _cubic),
    "lanczos": (3.0, _lanczos),
}


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes an array (height, width, channels) of uint8 or float32 to `size`, in its own dtype.

    uint8 results equal torch's bit for bit, float32 results up to rounding.
    """
    if interpolation == "nearest":
        rows, columns = (nearest(old, new) for old, new in zip(image.shape[:2], size, strict=True))
        return np.ascontiguousarray(image[rows][:, columns])
    if image.shape[1] != size[1]:  # columns first, as torch does
        image = _resize_rows(image.swapaxes(0, 1), size[1], interpolation).swapaxes(0, 1)
    if image.shape[0] != size[0]:
        image = _resize_rows(image, size[0], interpolation)
    return np.ascontiguousarray(image)


def nearest(old: int, new: int) -> np.ndarray:
    """Returns the source row of each output row."""
    scale = np.float32(old) / np.float32(new)
    positions = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale
    return np.minimum(np.floor(positions).astype(np.int64), old - 1)


def _resize_rows(image: np.ndarray, new: int, interpolation: str) -> np.ndarray:
    """Resizes the first axis."""
    counts_bytes = image.dtype == np.uint8
    bits = 0
    if counts_bytes:
        first, weights, bits = _whole_weights(image.shape[0], new, interpolation)
    else:
        first, weights = _weights(image.shape[0], new, interpolation, image.dtype)
    flat = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    result = np.empty((new, flat.shape[1]), image.dtype)
    for start in range(0, new, _BLOCK):
        chosen = slice(start, min(start + _BLOCK, new))
        low = int(first[chosen].min())
        high = min(int(first[chosen].max()) + weights.shape[1], image.shape[0])
        band = np.zeros((chosen.stop - start, high - low))
        for row, (begin, values) in enumerate(zip(first[chosen] - low, weights[chosen], strict=True)):
            count = min(len(values), high - low - begin)
            band[row, begin : begin + count] = values[:count]
        sums = band @ flat[low:high].astype(np.float64)  # integer sums for bytes: exact
        if counts_bytes:
            sums = np.clip(np.floor((sums + (1 << bits >> 1)) / (1 << bits)), 0, 255)
        result[chosen] = sums
    return result.reshape(new, *image.shape[1:])


def _weights(old: int, new: int, interpolation: str, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first input row of every output row, and its resampling weights (new, taps).

    Both are computed in `dtype` as in torch: for floats most of the difference would be the rounding of positions.
    """
    support, function = _FILTERS[interpolation]
    scale = dtype.type(old) / dtype.type(new)
    stretch = max(scale, dtype.type(1))
    support = dtype.type(support) * stretch
    centre = scale * (np.arange(new, dtype=dtype) + dtype.type(0.5))
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), old)
    taps = math.ceil(support) * 2 + 1
    offsets = np.arange(taps)
    weights = function(((offsets + first[:, None]).astype(dtype) - centre[:, None] + dtype.type(0.5)) / stretch)
    weights = np.where(offsets < (last - first)[:, None], weights, 0.0)
    return first, weights / weights.sum(1, keepdims=True)


def _whole_weights(old: int, new: int, interpolation: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns `_weights` in fixed point, and the number of fraction bits."""
    first, weights = _weights(old, new, interpolation, np.dtype(float))
    bits = _precision(float(weights.max()))
    return first, np.trunc(weights * (1 << bits) + np.where(weights < 0, -0.5, 0.5)), bits


def byte_weights(old: int, new: int, interpolation: str) -> tuple[Int32[np.ndarray, "new old"], int]:
    """Returns the fixed-point weights of one axis for bytes, and the number of their fraction bits."""
    first, weights, bits = _whole_weights(old, new, interpolation)
    return _matrix(first, weights, old).astype(np.int32), bits


def float_weights(old: int, new: int, interpolation: str) -> Float32[np.ndarray, "new old"]:
    """Returns the weights of one axis for floats."""
    return _matrix(*_weights(old, new, interpolation, np.dtype(np.float32)), old).astype(np.float32)


def _matrix(first: np.ndarray, weights: np.ndarray, old: int) -> np.ndarray:
    matrix = np.zeros((len(first), old))
    for row, begin, values in zip(matrix, first, weights, strict=True):
        count = min(len(values), old - begin)
        row[begin : begin + count] = values[:count]
    return matrix


def _precision(largest: float) -> int:
    """Returns the number of fraction bits that keeps the largest weight below 2 ** 15."""
    bits = 0
    while bits < _MAX_BITS and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return bits
