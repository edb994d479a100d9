"""Arrays as embedded PNG images, with a sequential colour map that is safe for colour blindness."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import ArrayLike

# Light to dark in steps of equal lightness; green, unlike the orange and blue of the two frameworks.
_SCALE = np.array([[247, 246, 240], [198, 226, 210], [120, 190, 168], [36, 139, 124], [8, 84, 86], [6, 38, 48]]) / 255
_HIGHLIGHT = np.array([30, 178, 145]) / 255


def png(pixels: ArrayLike) -> str:
    """Encodes grey (H, W) or RGB (H, W, 3) pixels in [0, 1] as a PNG data URI; NaN is black."""
    levels = np.nan_to_num(np.asarray(pixels, np.float64), posinf=1.0, neginf=0.0).clip(0, 1)
    data = np.round(levels * 255).astype(np.uint8)
    height, width = data.shape[:2]
    colour_type = 2 if data.ndim == 3 else 0
    scanlines = b"".join(b"\0" + row.tobytes() for row in data)  # filter 0 on every line
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(scanlines, 9)), (b"IEND", b""))
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))).decode()


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, data = chunk
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def heat(values: ArrayLike, low: float, high: float) -> np.ndarray:
    """Returns the RGB colours (..., 3) of values between `low`, lightest, and `high`, darkest."""
    place = np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1) * (len(_SCALE) - 1)
    return np.stack([np.interp(place, np.arange(len(_SCALE)), channel) for channel in _SCALE.T], axis=-1)


def highlighted(image: ArrayLike, weights: ArrayLike, factor: int = 6) -> np.ndarray:
    """Overlays an image (H, W), in which 1 is ink, enlarged `factor` times, with weights of a coarser grid."""
    ink = np.kron(np.asarray(image, np.float64), np.ones((factor, factor)))
    weights = np.nan_to_num(np.asarray(weights, np.float64))
    strength = 0.8 * _enlarged(weights / (weights.max() or 1.0), ink.shape)[..., None]
    return paper(ink) * (1 - strength) + _HIGHLIGHT * strength


def paper(ink: ArrayLike) -> np.ndarray:
    """Returns the RGB colours of a grey image in which 0 is paper and 1 is ink."""
    return _SCALE[0] * (1 - 0.86 * np.asarray(ink, np.float64)[..., None])


def _enlarged(grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resizes a grid bilinearly with half-pixel centres."""
    for axis, size in enumerate(shape):
        centres = (np.arange(grid.shape[axis]) + 0.5) * size / grid.shape[axis]
        grid = np.apply_along_axis(
            lambda line, size=size, centres=centres: np.interp(np.arange(size) + 0.5, centres, line), axis, grid
        )
    return grid
