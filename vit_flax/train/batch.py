"""Batches of a training run: their shapes, and images as the model takes them."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.config import TwoTowersConfig
from vit_flax.train.config import TrainConfig

# 'image' uint8 (B, H, W, C); 'label' int32 (B,) or, with several labels an image, int8 (B, K) of 0 and 1. -1 pads a
# batch of evaluation.
Batch = Mapping[str, Array]


def batch_shapes(config: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a whole batch, as jax.ShapeDtypeStruct."""
    size = config.data.batch_size
    images = jax.ShapeDtypeStruct((size, *config.image_size, config.model.in_chans), jnp.uint8)
    classes = config.model.num_classes
    labels = ((size, classes), jnp.int8) if config.data.multi_label else ((size,), jnp.int32)
    if isinstance(config.model, TwoTowersConfig):
        labels = ((size, config.model.text.context_length), jnp.int32)
    return {"image": images, "label": jax.ShapeDtypeStruct(*labels)}


def normalise_batch(images: Array, config: TrainConfig) -> Float[Array, "b h w c"]:
    """Returns images with pixels in 0..1 (or 0..255 as uint8) as the model takes them."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    mean, std = (jnp.asarray(value, images.dtype) for value in (config.data.mean, config.data.std))
    return (images - mean) / std
