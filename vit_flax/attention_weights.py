"""The weights of attention, by block and head, and what reaches the class token through all blocks."""

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
    """A request for attention weights: of all blocks, or of those numbered `layers`; of all heads, or of one."""

    layers: tuple[int, ...] | None = None
    head: int | None = None

    def function(self, model: VisionTransformer) -> Callable[[PyTree, PyTree], dict[str, jax.Array]]:
        """Returns the function of (parameters, images) that computes them, by 'layer_2' and so on."""
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

    Of differential attention it is the weighted difference of its two maps, of two attentions in a block the heads of
    both.

    Args:
        model: of any family.
        params: its parameters.
        images: (B, H, W, C), prepared; or what `to_patches` returns, for a NaFlex model.
        layers: numbers of blocks, negative ones from the end; None: all.

    Raises:
        ValueError: there is no such block, or it attends inside windows.
    """
    run = jax.jit(attention_function(model, layers))
    return {number: np.asarray(array) for number, array in run(params, images).items()}


def attention_function(
    model: VisionTransformer, layers: Sequence[int] | None = None
) -> Callable[[PyTree, PyTree], dict[int, jax.Array]]:
    """Returns the function of (parameters, images) that computes what `attention_maps` does."""
    numbers = taken_blocks(layers, model.config.depth)
    position = model.config.position
    if parted := [number for number in numbers if not position.sees_all(number)]:
        whole = ", ".join(str(i) for i in range(model.config.depth) if position.sees_all(i)) or "none"
        raise ValueError(f"block {parted[0]} attends inside windows, which are no map of the image; whole: {whole}")
    # whose blocks say what they see, in queries and keys that are not rounded
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
    """Computes how much of each patch reaches the class token through all blocks, (N, rows, columns), of sum 1.

    Every block's attention, averaged over its heads, counts half and the skip around it the other half. Where there is
    no class token, it is the mean over the patches. Of patches that `to_patches` returns, all images have one grid.

    Raises:
        ValueError: attention is differential, or there is padding.

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
