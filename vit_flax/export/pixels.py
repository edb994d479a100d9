"""Image preprocessing as part of an exported program, for uint8 images of one size."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_flax.preprocessing import pillow_resize, torch_resize
from vit_flax.preprocessing.evaluation import PAD, Preprocessing


def prepare_pixels(value: Preprocessing, raw_size: tuple[int, int], channels: int) -> Callable[[Array], Array]:
    """Returns the preprocessing of uint8 images (B, H, W, C) of `raw_size` as a JAX function.

    uint8 pixels are resized in integers with the fixed-point weights of Pillow or torch, bit for bit as they do.

    Raises:
        ValueError: the numbers of channels differ, or the installed Pillow resizes in another way.
    """
    value = value.for_model(value.image_size, channels) if value.image_size else value
    sides = value.sides(*raw_size)
    full: tuple[int, int] = value.image_size or sides
    size = sides if value.crop_mode == PAD else full  # its zero padding follows normalisation
    floats = value.resizer == "torchvision_floats"
    passes = [(_resizing(value, raw_size[axis], sides[axis]), axis + 1) for axis in (1, 0)]
    if value.resizer == "pillow" and value.interpolation != "nearest":
        down_first = pillow_resize.goes_down_first(raw_size, sides, value.interpolation)
        passes = passes[::-1] if down_first else passes
    crops = [_crop(value, old, new) for old, new in zip(sides, size, strict=True)]
    rest = [(0, 0), *((0, whole - side) for whole, side in zip(full, size, strict=True)), (0, 0)]
    pads = [(0, 0), *((before, after) for before, after, _ in crops), (0, 0)]
    top, left = (start for *_, start in crops)
    fill = value.fill_colour() if value.resizer == "pillow" else 0
    colours = np.broadcast_to(np.asarray(fill, np.int32), (channels,))
    mean, std = (np.asarray(numbers, np.float32) for numbers in (value.mean, value.std))

    def prepare(images: Array) -> Array:
        x = images.astype(jnp.float32) * np.float32(1 / 255) if floats else images.astype(jnp.int32)
        for resize, axis in passes:
            x = resize(x, axis)
        if any(map(any, pads)):
            # the fill colour in the padding
            outside = np.pad(np.zeros((1, *sides, 1), np.int32), pads, constant_values=1)
            x = jnp.pad(x, pads) + (outside * colours).astype(x.dtype)
        x = x[:, top : top + size[0], left : left + size[1]]
        x = ((x if floats else x.astype(jnp.float32) / np.float32(255)) - mean) / std
        return jnp.pad(x, rest) if size != full else x

    return prepare


def _resizing(value: Preprocessing, old: int, new: int) -> Callable[[Array, int], Array]:
    """Returns the resizing of one axis from `old` to `new`."""
    if old == new:
        return lambda x, axis: x
    if value.interpolation == "nearest":
        rows = (pillow_resize if value.resizer == "pillow" else torch_resize).nearest(old, new)
        return lambda x, axis: jnp.take(x, rows, axis=axis)
    if value.resizer == "torchvision_floats":
        weights = torch_resize.float_weights(old, new, value.interpolation)
        return lambda x, axis: _along(x, jnp.asarray(weights), axis)
    module = pillow_resize if value.resizer == "pillow" else torch_resize
    whole, bits = module.byte_weights(old, new, value.interpolation)

    def resize(x: Array, axis: int) -> Array:
        sums = _along(x, jnp.asarray(whole), axis) + (1 << bits >> 1)
        # division by a power of two after negatives are clipped to 0
        return jnp.minimum(jax.lax.div(jnp.maximum(sums, 0), jnp.int32(1 << bits)), 255)

    return resize


def _along(x: Array, weights: Array, axis: int) -> Array:
    subscripts = "nw,bhwc->bhnc" if axis == 2 else "nh,bhwc->bnwc"
    return jnp.einsum(subscripts, weights, x, precision=jax.lax.Precision.HIGHEST)


def _crop(value: Preprocessing, old: int, new: int) -> tuple[int, int, int]:
    """Returns the padding before and after one axis, and the start of the crop."""
    gap, wide = max(new - old, 0), max(old, new)
    start = round((wide - new) / 2.0) if value.resizer == "pillow" else (wide - new) // 2
    return gap // 2, gap - gap // 2, start
