"""Resizes a loaded model for images of another size."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from vit_flax.models import VisionTransformer
from vit_flax.models.resample import resize_pos_embed, resize_rel_pos, resize_rel_pos_bias
from vit_flax.models.shapes import expected_shapes
from vit_flax.resizing import REL_POS, REL_POS_BIAS, TABLE


def at_image_size(
    model: VisionTransformer,
    params: PyTree,
    image_size: tuple[int, int] | int,
    resample: str = "bicubic_antialias",
    resample_rel_pos_bias: str = "bicubic",
) -> tuple[VisionTransformer, PyTree]:
    """Returns the model and parameters for images of (height, width); parameters of other shapes are resized.

    Args:
        model: the model.
        params: its parameters.
        image_size: (height, width), or the side of a square.
        resample: how its position table is resized, a mode of vit_flax.models.resample: timm's dynamic_img_size is
            'bicubic_antialias', transformers' interpolate_pos_encoding is 'bicubic'.
        resample_rel_pos_bias: how its relative position bias tables are resized.

    Raises:
        ValueError: the size does not divide into patches, there is no such mode, or a parameter cannot be resized.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    resized = model.clone(config=model.config.replace(image_size=(height, width)))
    old, new = model.config.grid_size, resized.config.grid_size
    if old == new:
        return resized, params
    flat: dict[str, Any] = flatten_dict(params, sep="/")  # pyright: ignore[reportAssignmentType]
    for path, shape in expected_shapes(resized).items():
        table = flat[path]
        if path == TABLE and resized.config.pos_embed_grid is None:
            prefix = table.shape[-2] - old[0] * old[1]
            changed = resize_pos_embed(np.asarray(table), old, new, prefix, resample)
        elif path.endswith(REL_POS_BIAS):
            changed = resize_rel_pos_bias(np.asarray(table), old, new, resample_rel_pos_bias)
        elif path.endswith(REL_POS) and table.shape != shape:
            changed = resize_rel_pos(np.asarray(table), shape[0])
        elif table.shape != shape:
            raise ValueError(f"{path} of shape {table.shape} fits images of {model.config.image_size} alone")
        else:
            continue
        flat[path] = jnp.asarray(changed, table.dtype)
    return resized, unflatten_dict(flat, sep="/")
