"""Attention weights by block and head, and attention rollout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from vit_flax.models import VisionTransformer
from vit_flax.models.attention import WEIGHTS
from vit_flax.models.intermediates import taken_blocks
from vit_flax.models.loop import NO_REMAT
from vit_flax.preprocessing.naflex import Patches, model_inputs


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """A request for attention weights of all blocks or of `layers`, and of all heads or of one."""

    layers: tuple[int, ...] | None = None
    head: int | None = None

    def function(self, model: VisionTransformer) -> Callable[[PyTree, PyTree], dict[str, jax.Array]]:
        """Returns the function of (parameters, images) that computes the weights by name, 'layer_2' and so on."""
        compute = attention_function(model, self.layers)
        heads = slice(None) if self.head is None else slice(self.head, self.head + 1 or None)

        def run(params: PyTree, images: PyTree) -> dict[str, jax.Array]:
            return {f"layer_{number}": maps[:, heads] for number, maps in compute(params, images).items()}

        return run


def attention_maps(
    model: VisionTransformer,
    params: PyTree,
    images: jax.Array | np.ndarray | Patches,
    layers: Sequence[int] | None = None,
) -> dict[int, np.ndarray]:
    """Computes the attention weights (B, H, N, N) of blocks, softmax(q k^T scale + bias), prefix tokens first.

    Differential attention gives the weighted difference of its two maps; a block of two attention layers gives the
    heads of both.

    Args:
        model: a model of any family.
        params: its parameters.
        images: preprocessed images (B, H, W, C), or the result of `to_patches` for a NaFlex model.
        layers: indices of blocks, negative ones from the end; None: all.

    Raises:
        ValueError: there is no such block, or it has window attention.
    """
    run = jax.jit(attention_function(model, layers))
    return {number: np.asarray(array) for number, array in run(params, images).items()}


def attention_function(
    model: VisionTransformer, layers: Sequence[int] | None = None
) -> Callable[[PyTree, PyTree], dict[int, jax.Array]]:
    """Returns the function of (parameters, images) that computes `attention_maps`."""
    numbers = taken_blocks(layers, model.config.depth)
    position = model.config.position
    if parted := [number for number in numbers if not position.sees_all(number)]:
        whole = ", ".join(str(i) for i in range(model.config.depth) if position.sees_all(i))
        way = f"ask for a layer that sees all of it: {whole}" if whole else "no layer sees all of it"
        raise ValueError(f"block {parted[0]} attends inside windows, which are no map of the image; {way}")
    # an unrolled model, whose blocks sow their weights, with queries and keys in float32
    plain = model.clone(scan=False, remat=NO_REMAT, precision=model.policy.wide)
    places = {f"blocks_{number}": number for number in numbers}

    def run(params: PyTree, images: PyTree) -> dict[int, Any]:
        inputs, named = model_inputs(images)
        _, state = plain.apply({"params": params}, inputs, **named, method="features", mutable=[WEIGHTS])
        weights: dict[int, list[Any]] = {number: [] for number in numbers}
        sown: dict[Any, Any] = flatten_dict(state[WEIGHTS])  # pyright: ignore[reportAssignmentType]
        for path, arrays in sown.items():
            if path[0] in places:
                weights[places[path[0]]].extend(arrays)
        return {number: jnp.concatenate(arrays, axis=1) for number, arrays in weights.items()}

    return run


def attention_rollout(model: VisionTransformer, params: PyTree, images: np.ndarray | Patches) -> np.ndarray:
    """Computes attention rollout from the patches to the class token, (N, rows, columns), of sum 1.

    Every block's attention, averaged over its heads, counts half and the residual connection the other half. Without a
    class token the result is the mean over the patches. Patches of `to_patches` must have one grid for all images.

    Raises:
        ValueError: attention is differential, grids differ, or patches are padded.

    Reference: arXiv 2005.00928.
    """
    config = model.config
    if config.block.startswith("diff"):
        raise ValueError(
            f"block={config.block!r} mixes values by differences of weights, which do not add up to shares"
        )
    grid = config.grid_size
    if isinstance(images, tuple):
        if not images[1].all() or len(np.unique(images[2], axis=0)) > 1:
            raise ValueError("patches of several grids, or padded ones, have no map in common: one image at a time")
        grid = tuple(images[2][0].tolist())
    maps = attention_maps(model, params, images)
    rollout = np.eye(maps[0].shape[-1])
    for weights in maps.values():
        rollout = (weights.astype(np.float64).mean(1) + np.eye(rollout.shape[-1])) / 2 @ rollout
    first = config.num_prefix_tokens
    patches = rollout[:, 0, first:] if config.class_token else rollout[:, first:, first:].mean(1)
    return (patches / patches.sum(-1, keepdims=True)).reshape(len(patches), *grid)
