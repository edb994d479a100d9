"""Position tables for another grid and patch kernels for another patch size, each as its source resizes them.

Every mode acts on height and width apart, so a resize is two products with small matrices that NumPy builds from the
four sizes. The matrices are constants: `jit`, `grad` and `vmap` go through. NumPy arrays are resized by NumPy in
float64, JAX arrays by JAX in float32 or wider, and the result has the dtype of what was given.

| mode | each axis | who resizes so |
|---|---|---|
| `bicubic` | torch bicubic (a=-0.75, border repeated), by size | HF ViT, CLIP, DINOv2; DeiT; MAE; T2T-ViT |
| `bicubic_offset` | the same with torch's scale_factor=(new + 0.1) / old | DINO, DINOv2 of facebookresearch |
| `bicubic_corners` | the same with align_corners=True | torchvision's interpolate_embeddings |
| `bicubic_antialias` | torch bicubic antialias=True (a=-0.5, renormalised) | timm, open_clip, DINOv2 with registers |
| `bilinear` | torch bilinear | timm's loader of Google's .npz, TensorFlow's resize |
| `bilinear_crop` | the same to a square of the longer side, of which the upper left part is taken | RADIO |
| `bilinear_antialias` | torch bilinear antialias=True | NaFlex: big_vision, HF SigLIP2 |
| `zoom` | scipy.ndimage.zoom(order=1): linear, corners aligned | Google's vision_transformer, big_vision, scenic |
| `tiled` | repeated from the first row and column on | SAM 3 |
| `geometric` | linear, samples closer together near the middle; for relative position bias tables alone | BEiT, timm |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Table = TypeVar("Table", np.ndarray, jax.Array)
Grid = tuple[int, int]  # (height, width)


def resize_pos_embed(pos_embed: Table, old_grid: Grid, new_grid: Grid, num_prefix_tokens: int, mode: str) -> Table:
    """Resizes a position table (..., prefix + height * width, dim) to another grid; the prefix's rows stay as they are.

    Equal grids return the table itself, as every source does.

    Raises:
        ValueError: no such mode, or the table has not as many rows as the old grid asks for.
    """
    _check_mode(mode, MODES)
    (old_height, old_width), (new_height, new_width) = old_grid, new_grid
    rows = num_prefix_tokens + old_height * old_width
    if pos_embed.ndim < 2 or pos_embed.shape[-2] != rows:
        raise ValueError(
            f"a table for {num_prefix_tokens} prefix tokens and a {old_height}x{old_width} grid has {rows} rows; "
            f"this one has the shape {tuple(pos_embed.shape)}"
        )
    if (old_height, old_width) == (new_height, new_width):
        return pos_embed
    numpy: Any = jnp if isinstance(pos_embed, jax.Array) else np
    prefix, grid = pos_embed[..., :num_prefix_tokens, :], pos_embed[..., num_prefix_tokens:, :]
    *batch, _, dim = pos_embed.shape
    grid = grid.reshape(*batch, old_height, old_width, dim)
    sides = (max(new_grid),) * 2 if mode in _CROPPED else (new_height, new_width)
    grid = _apply("ih,jw,...hwd->...ijd", (old_height, sides[0]), (old_width, sides[1]), MODES[mode], grid)
    grid = grid[..., :new_height, :new_width, :]
    return numpy.concatenate([prefix, grid.reshape(*batch, new_height * new_width, dim)], axis=-2)


def resize_rel_pos_bias(table: Table, old_grid: Grid, new_grid: Grid, mode: str) -> Table:
    """Resizes a relative position bias table (steps from patch to patch, then three, heads) to that of another grid.

    Raises:
        ValueError: no such mode, or the table has not as many rows as the old grid asks for.
    """
    _check_mode(mode, REL_POS_BIAS_MODES)
    (old_height, old_width), (height, width) = (tuple(2 * side - 1 for side in grid) for grid in (old_grid, new_grid))
    if table.shape[0] != old_height * old_width + 3:
        raise ValueError(f"a table for a {old_grid[0]}x{old_grid[1]} grid has {old_height * old_width + 3} rows")
    if tuple(old_grid) == tuple(new_grid):
        return table
    numpy: Any = jnp if isinstance(table, jax.Array) else np
    steps = table[:-3].reshape(old_height, old_width, -1)
    steps = _apply("ih,jw,hwd->ijd", (old_height, height), (old_width, width), REL_POS_BIAS_MODES[mode], steps)
    return numpy.concatenate([steps.reshape(height * width, -1), table[-3:]], axis=0)


def resize_rel_pos(table: Table, rows: int) -> Table:
    """Resizes a relative position embedding along one axis (2 side - 1, dim) linearly, as every source does.

    Reference: get_rel_pos of timm.models.vision_transformer_sam, transformers' VitDet and SAM, detectron2.
    """
    return _apply("ih,jw,hwd->ijd", (table.shape[0], rows), (1, 1), bilinear, table[:, None])[:, 0]


def resize_patch_embed(kernel: Table, new_size: Grid, mode: str) -> Table:
    """Resizes a patch kernel (height, width, chans, features) so that a resized patch gives the same token.

    With B the matrix that resizes a patch, this is the pseudo-inverse of B's transpose times the kernel: exact when
    patches grow, closest in the mean over white noise when they shrink.

    Raises:
        ValueError: no such mode.

    Reference: FlexiViT, arXiv 2212.08013, section 3.4; `bilinear` is big_vision's (TensorFlow resizes without
    antialias), `bicubic_antialias` timm.layers.resample_patch_embed's default.
    """
    _check_mode(mode, PATCH_MODES)
    height, width, _, _ = kernel.shape
    if (height, width) == tuple(new_size):
        return kernel
    return _apply("ih,jw,hwcd->ijcd", (height, new_size[0]), (width, new_size[1]), PATCH_MODES[mode], kernel)


def _apply(subscripts: str, heights: Grid, widths: Grid, matrix: Callable[[int, int], np.ndarray], array: Any) -> Any:
    rows, columns = matrix(*heights), matrix(*widths)
    if not isinstance(array, jax.Array):
        resized = np.einsum(subscripts, rows, columns, array.astype(np.float64), optimize=True)
        return resized.astype(array.dtype)
    dtype = jnp.promote_types(array.dtype, jnp.float32)
    resized = jnp.einsum(
        subscripts, rows.astype(dtype), columns.astype(dtype), array.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )
    return resized.astype(array.dtype)


def _taps(positions: np.ndarray, first: int, count: int, kernel: Callable[[np.ndarray], np.ndarray], old: int):
    """Returns the matrix (new, old) that weighs `count` samples around each position, the border sample repeated."""
    base = np.floor(positions).astype(int)
    matrix = np.zeros((len(positions), old))
    for offset in range(first, first + count):
        weight = kernel(positions - (base + offset))
        np.add.at(matrix, (np.arange(len(positions)), np.clip(base + offset, 0, old - 1)), weight)
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel (1981)."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1 - np.abs(distance))


_torch_cubic = functools.partial(_cubic, a=-0.75)
_antialias_cubic = functools.partial(_cubic, a=-0.5)


def _centres(new: int, scale: float) -> np.ndarray:
    return (np.arange(new) + 0.5) * scale - 0.5


@functools.cache
def _bicubic(old: int, new: int) -> np.ndarray:
    return _taps(_centres(new, old / new), -1, 4, _torch_cubic, old)


@functools.cache
def _bicubic_offset(old: int, new: int) -> np.ndarray:
    # torch takes the step from the scale factor, not from the two sizes
    return _taps(_centres(new, 1 / ((new + 0.1) / old)), -1, 4, _torch_cubic, old)


@functools.cache
def _bicubic_corners(old: int, new: int) -> np.ndarray:
    step = (old - 1) / (new - 1) if new > 1 else 0.0
    return _taps(np.arange(new) * step, -1, 4, _torch_cubic, old)


@functools.cache
def bilinear(old: int, new: int) -> np.ndarray:
    """Returns the matrix (new, old) of torch's bilinear resize without antialias."""
    return _taps(np.maximum(_centres(new, old / new), 0.0), 0, 2, _triangle, old)


@functools.cache
def bilinear_corners(old: int, new: int) -> np.ndarray:
    """Returns the matrix (new, old) of torch's bilinear resize with align_corners=True."""
    step = (old - 1) / (new - 1) if new > 1 else 0.0
    return _taps(np.arange(new) * step, 0, 2, _triangle, old)


def _antialias(old: int, new: int, kernel: Callable[[np.ndarray], np.ndarray], radius: int) -> np.ndarray:
    scale = old / new
    stretch = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    first = np.maximum((centres - radius * stretch + 0.5).astype(int), 0)
    last = np.minimum((centres + radius * stretch + 0.5).astype(int), old)
    samples = np.arange(old)
    weights = kernel((samples - centres[:, None] + 0.5) / stretch)
    weights[(samples < first[:, None]) | (samples >= last[:, None])] = 0.0
    return weights / weights.sum(axis=1, keepdims=True)


@functools.cache
def _bicubic_antialias(old: int, new: int) -> np.ndarray:
    return _antialias(old, new, _antialias_cubic, 2)


@functools.cache
def _bilinear_antialias(old: int, new: int) -> np.ndarray:
    return _antialias(old, new, _triangle, 1)


@functools.cache
def _zoom(old: int, new: int) -> np.ndarray:
    step = (old - 1) / (new - 1) if new > 1 else 1.0
    positions = np.arange(new) * step
    matrix = _taps(positions, 0, 2, _triangle, old)
    # For a few pairs of sizes (16 to 30 is one) the last position is rounded to just outside, where scipy puts zeros.
    # Models resized by the source have those zeros, so they are kept.
    matrix[positions > old - 1] = 0.0
    return matrix


@functools.cache
def _geometric(old: int, new: int) -> np.ndarray:
    # Samples lie closer together near the middle: their distances grow by a factor that makes the outermost land on
    # the outermost new one. The factor is found by halving 1.01..1.5, no further.
    low, high = 1.01, 1.5
    factor = low
    while high - low > 1e-6:
        factor = (low + high) / 2
        if (1 - factor ** (old // 2)) / (1 - factor) > new // 2:
            high = factor
        else:
            low = factor
    distances = 1 + np.concatenate([[0], np.cumsum(factor ** np.arange(1, old // 2))])[: old // 2]
    samples = np.concatenate([-distances[::-1], [0], distances])
    places = np.clip(np.arange(new) - new // 2, samples[0], samples[-1])
    right = np.clip(np.searchsorted(samples, places), 1, old - 1)
    share = (places - samples[right - 1]) / (samples[right] - samples[right - 1])
    matrix = np.zeros((new, old))
    matrix[np.arange(new), right - 1], matrix[np.arange(new), right] = 1 - share, share
    return matrix


@functools.cache
def _tiled(old: int, new: int) -> np.ndarray:
    return (np.arange(new)[:, None] % old == np.arange(old)).astype(float)


def _inverse(matrix: Callable[[int, int], np.ndarray]) -> Callable[[int, int], np.ndarray]:
    @functools.cache
    def pseudo_inverse(old: int, new: int) -> np.ndarray:
        # the pseudo-inverse of a Kronecker product is that of its factors: each axis has its own
        return np.linalg.pinv(matrix(old, new).T)

    return pseudo_inverse


MODES: dict[str, Callable[[int, int], np.ndarray]] = {
    "bicubic": _bicubic,
    "bicubic_offset": _bicubic_offset,
    "bicubic_corners": _bicubic_corners,
    "bicubic_antialias": _bicubic_antialias,
    "bilinear": bilinear,
    "bilinear_crop": bilinear,
    "bilinear_antialias": _bilinear_antialias,
    "zoom": _zoom,
    "tiled": _tiled,
}
_CROPPED = ("bilinear_crop",)
REL_POS_BIAS_MODES: dict[str, Callable[[int, int], np.ndarray]] = {**MODES, "geometric": _geometric}
PATCH_MODES: dict[str, Callable[[int, int], np.ndarray]] = {
    name: _inverse(MODES[name]) for name in ("bicubic", "bicubic_antialias", "bilinear", "bilinear_antialias")
}


def _check_mode(mode: str, modes: dict[str, Any]) -> None:
    if mode not in modes:
        raise ValueError(f"unknown resampling mode {mode!r}; known: {', '.join(modes)}")
