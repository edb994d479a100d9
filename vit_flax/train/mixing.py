"""Mixup, cutmix and random erasing of whole batches: pure functions that run inside the step."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vit_flax.train.config import MixingConfig

ASPECT = (0.3, 1 / 0.3)  # bounds of an erased rectangle's height over its width


def mix(
    key: Array, images: Float[Array, "b h w c"], labels: Array, num_classes: int, config: MixingConfig
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Returns images after random erasing, then mixup or CutMix with the reversed batch, and soft labels.

    Labels are integers (B,) or probabilities (B, K). One lambda, and one rectangle, is drawn for the whole batch.

    Reference: timm.data.Mixup(mode="batch") and timm.data.random_erasing.RandomErasing(mode="pixel").
    """
    erase_key, mix_key, choice_key, lam_key, box_key = jax.random.split(key, 5)
    targets = jax.nn.one_hot(labels, num_classes) if labels.ndim == 1 else labels
    targets = targets.astype(jnp.float32)
    if config.erasing_prob > 0:
        images = erase(erase_key, images, config.erasing_prob, config.erasing_area)
    if not config.mixes:
        return images, targets
    both = config.mixup_alpha > 0 and config.cutmix_alpha > 0
    cut = jax.random.uniform(choice_key) < config.switch_prob if both else jnp.asarray(config.cutmix_alpha > 0)
    alpha = jnp.where(cut, config.cutmix_alpha, config.mixup_alpha)
    lam = jax.random.beta(lam_key, alpha, alpha, dtype=jnp.float32)
    lam = jnp.where(jax.random.uniform(mix_key) < config.prob, lam, 1.0)
    height, width = images.shape[1:3]
    row_key, column_key = jax.random.split(box_key)
    centre = jax.random.randint(row_key, (), 0, height), jax.random.randint(column_key, (), 0, width)
    if config.mixup_alpha > 0:
        mixed, soft = mixup(images, targets, jnp.where(cut, 1.0, lam))
    else:
        mixed, soft = images, targets
    if config.cutmix_alpha > 0:
        mixed, soft = cutmix(mixed, soft, jnp.where(cut, lam, 1.0), centre)
    return mixed, soft


def mixup(
    images: Float[Array, "b h w c"], targets: Float[Array, "b k"], lam: Float[Array, ""]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Computes lam * x + (1 - lam) * reversed x of images and targets."""
    share = lam.astype(images.dtype)
    return images * share + images[::-1] * (1 - share), targets * lam + targets[::-1] * (1 - lam)


def cut_box(
    lam: Float[Array, ""], centre: tuple[Int[Array, ""], Int[Array, ""]], height: int, width: int
) -> tuple[Array, Array, Array, Array]:
    """Returns top, bottom, left, right of the rectangle with 1 - lam of the area, clipped at the borders."""
    ratio = jnp.sqrt(1.0 - lam)
    sides = []
    for middle, side in zip(centre, (height, width), strict=True):
        length = (side * ratio).astype(jnp.int32)
        sides += [jnp.clip(middle - length // 2, 0, side), jnp.clip(middle + (length + 1) // 2, 0, side)]
    return sides[0], sides[1], sides[2], sides[3]


def cutmix(
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b k"],
    lam: Float[Array, ""],
    centre: tuple[Int[Array, ""], Int[Array, ""]],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Pastes a rectangle of the reversed batch into the images; targets mix by its clipped area."""
    height, width = images.shape[1:3]
    top, bottom, left, right = cut_box(lam, centre, height, width)
    inside = _rectangle(height, width, top, bottom, left, right)[None, ..., None]
    lam = 1.0 - ((bottom - top) * (right - left)).astype(jnp.float32) / (height * width)
    return jnp.where(inside, images[::-1], images), targets * lam + targets[::-1] * (1 - lam)


def erase(
    key: Array, images: Float[Array, "b h w c"], prob: float, area: tuple[float, float]
) -> Float[Array, "b h w c"]:
    """Replaces a rectangle of some of the images by normal noise.

    Its share of the area is drawn evenly from `area`, its shape evenly on a logarithmic scale from ASPECT; a side
    longer than the image's is cut to it.
    """
    batch, height, width, _ = images.shape
    chosen, share, shape, top, left, noise = jax.random.split(key, 6)
    pixels = height * width * jax.random.uniform(share, (batch,), minval=area[0], maxval=area[1])
    aspect = jnp.exp(jax.random.uniform(shape, (batch,), minval=math.log(ASPECT[0]), maxval=math.log(ASPECT[1])))
    rows = jnp.clip(jnp.round(jnp.sqrt(pixels * aspect)), 1, height).astype(jnp.int32)
    columns = jnp.clip(jnp.round(jnp.sqrt(pixels / aspect)), 1, width).astype(jnp.int32)
    first_row = (jax.random.uniform(top, (batch,)) * (height - rows + 1)).astype(jnp.int32)
    first_column = (jax.random.uniform(left, (batch,)) * (width - columns + 1)).astype(jnp.int32)
    inside = jax.vmap(_rectangle, in_axes=(None, None, 0, 0, 0, 0))(
        height, width, first_row, first_row + rows, first_column, first_column + columns
    )
    inside &= (jax.random.uniform(chosen, (batch,)) < prob)[:, None, None]
    return jnp.where(inside[..., None], jax.random.normal(noise, images.shape, images.dtype), images)


def _rectangle(height: int, width: int, top: Array, bottom: Array, left: Array, right: Array) -> Array:
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
