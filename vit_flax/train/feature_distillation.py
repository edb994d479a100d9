"""Distillation of intermediate features: the student's tokens after blocks learn from the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from vit_flax.config import ViTConfig
from vit_flax.models import VisionTransformer
from vit_flax.models.intermediates import taken_blocks

PROJECTIONS = "feature_projections"  # among the trained parameters, never among the exported ones
_EPS = 1e-6


def check_features(
    student: ViTConfig, teacher: ViTConfig, layers: Sequence[int], teacher_layers: Sequence[int] | None
) -> None:
    """Raises ValueError where the student's features cannot be compared with the teacher's."""
    if student.image_size != teacher.image_size or student.grid_size != teacher.grid_size:
        own, other = ("{}x{} patches of {}x{} pixels".format(*c.grid_size, *c.image_size) for c in (student, teacher))
        raise ValueError(f"loss.feature_weight: the model has {own}, the teacher {other}; both must be the same")
    for whose, config in (("model", student), ("teacher", teacher)):
        if config.dim_before(0) != config.dim_before(config.depth):
            raise ValueError(
                f"loss.feature_weight: the {whose}'s blocks are of several widths ({config.family.name}): "
                "such are not compared"
            )
    if student.in_chans != teacher.in_chans:
        raise ValueError(
            f"loss.feature_weight: the model reads {student.in_chans} channels, the teacher {teacher.in_chans}"
        )
    pairs = (("feature_layers", layers, student), ("teacher_layers", teacher_layers or layers, teacher))
    for name, numbers, config in pairs:
        whose = "model" if config is student else "teacher"
        if not numbers or any(not -config.depth <= number < config.depth for number in numbers):
            raise ValueError(
                f"loss.{name} {tuple(numbers)}: the {whose} has blocks 0 to {config.depth - 1}; "
                "negative numbers count from the end"
            )
        placed = [number % config.depth for number in numbers]
        if placed != sorted(set(placed)):
            raise ValueError(f"loss.{name} {tuple(numbers)} must ascend through the {whose}'s {config.depth} blocks")
    if len(pairs[0][1]) != len(pairs[1][1]):
        raise ValueError(
            f"loss.feature_layers names {len(layers)} blocks and loss.teacher_layers {len(pairs[1][1])}: one for each"
        )


def init_projections(key: Array, student: ViTConfig, teacher: ViTConfig, count: int) -> PyTree:
    """Returns a linear projection to the teacher's width for each pair of blocks; none where the widths are equal."""
    if student.embed_dim == teacher.embed_dim:
        return {}
    shape = (student.embed_dim, teacher.embed_dim)
    keys, draw = jax.random.split(key, count), jax.nn.initializers.lecun_normal()
    return {
        f"layer_{place}": {"kernel": draw(keys[place], shape, jnp.float32), "bias": jnp.zeros(shape[1:], jnp.float32)}
        for place in range(count)
    }


def tokens_after(
    model: VisionTransformer, images: Array, layers: Sequence[int], finish: Callable[[VisionTransformer, Array], PyTree]
) -> tuple[PyTree, list[tuple[Array, Array | None]]]:
    """Returns what `finish` makes of a bound model's features, and patches and prefix tokens after blocks."""
    taken = taken_blocks(tuple(layers), model.config.depth)
    asked: Any = {"return_prefix_tokens": True, "output_fmt": "NLC"}
    tokens: Any
    tokens, found = model.forward_intermediates(images, taken, **asked)
    return finish(model, tokens), [part if isinstance(part, tuple) else (part, None) for part in found]


def feature_loss(
    student: Sequence[tuple[Array, Array | None]],
    teacher: Sequence[tuple[Array, Array | None]],
    projections: PyTree,
    has_class_token: bool,
) -> Float[Array, ""]:
    """Computes the mean squared difference of standardised tokens, averaged over blocks.

    Tokens are the patches, and the class token where both models have one.

    Args:
        student: patches and prefix tokens after each block.
        teacher: the same of the teacher's.
        projections: of `init_projections`.
        has_class_token: of both models.

    Reference: FitNets, arXiv 1412.6550, with the whitened target of arXiv 2205.14141.
    """

    def gathered(part: tuple[Array, Array | None]) -> Array:
        patches, prefix = part
        return patches if prefix is None or not has_class_token else jnp.concatenate([prefix[:, :1], patches], axis=1)

    losses = []
    for place, (own, other) in enumerate(zip(student, teacher, strict=True)):
        mine, target = gathered(own), lax.stop_gradient(gathered(other))
        if projections:
            linear = projections[f"layer_{place}"]
            mine = jnp.matmul(mine, linear["kernel"].astype(mine.dtype)) + linear["bias"].astype(mine.dtype)
        losses.append(jnp.square(_whitened(mine) - _whitened(target)).mean())
    return jnp.stack(losses).mean()


def _whitened(tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    centred = tokens - tokens.mean(-1, keepdims=True)  # the two-pass variance loses no digits
    return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + _EPS)
