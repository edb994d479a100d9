"""Images of a batch a part after the other in each block, so that a TPU's fast memory holds what is between its layers.

A TPU's compiler leaves the hidden layer of an MLP in the main memory where the fast one does not hold it beside the
tokens and the weights. Of a part of the images it does, and the weights are still read once. That is for a forward pass
alone: what the backward pass needs is stored anyway, and gradients of weights would be added up over the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from vit_flax.chips import chip_of_kind
from vit_flax.models.kernel_sharding import image_shards, kernels_are_sharded
from vit_flax.models.placed import custom_vjp, explicit_sharding
from vit_flax.models.precision import target

# of the fast memory, what the widest layer of a part takes at the most: of more, a v6e's compiler keeps less there
_SHARE = 8
# bytes of fast memory: a v5p's 64 MiB do not hold the tokens beside a layer and weights, and parts only read more
_LEAST_MEMORY = 128 * 2**20
_MOST = 8  # parts: each has kernels of its own, and more would take long to compile


def count_parts(tokens: Array, width: int, itemsize: int) -> int:
    """Returns in how many parts a TPU computes the images of `tokens` (B, N, D): 1 where nothing is gained.

    That is where their layers fit as they are, where so many images are computed that no eighth of them fits, and where
    the target or the sharding of the images is not known or the fast memory is small. `width` and `itemsize` are of the
    widest layer's results.
    """
    chip = chip_of_kind(target().kind)
    is_known = target().devices == 1 or kernels_are_sharded()
    if target().platform != "tpu" or not is_known or explicit_sharding(tokens) is not None:
        return 1
    if chip is None or chip.fast_memory < _LEAST_MEMORY:
        return 1
    images, odd = divmod(tokens.shape[0], image_shards())
    size = images * tokens.shape[1] * width * itemsize
    least = -(-size * _SHARE // chip.fast_memory)
    if odd or size * 4 <= chip.fast_memory:
        return 1
    return next((count for count in range(min(least, images), _MOST + 1) if images % count == 0), 1)


def split(tokens: Array, count: int) -> list[Array]:
    """Returns parts of the images, of which each device has its own share."""
    if count == 1:
        return [tokens]
    parts = tokens.reshape(image_shards(), count, -1, *tokens.shape[1:])
    return [parts[:, i].reshape(-1, *tokens.shape[1:]) for i in range(count)]


def join(parts: Sequence[Array]) -> Array:
    """Returns all images, of their parts."""
    if len(parts) == 1:
        return parts[0]
    shards = image_shards()
    rows = [part.reshape(shards, -1, *part.shape[1:]) for part in parts]
    return jnp.concatenate(rows, axis=1).reshape(-1, *parts[0].shape[1:])


def held_on_chip(params: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
    """Returns the weights of a scanned block's layers, the larger ones copied to where all parts read them.

    Copies take a twelfth of the fast memory at the most: beside more of them v5e's and v6e's compilers keep less there.
    """
    chip = chip_of_kind(target().kind)
    room = 0 if chip is None else chip.fast_memory // 12
    held = dict(params)
    for name in sorted(params, key=lambda name: -_size(params[name])):
        if _size(params[name]) <= room:
            room -= _size(params[name])
            held[name] = lax.optimization_barrier(params[name])
    return held


def _size(params: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def forward_in_parts(run: Callable[[PyTree, Array, int], PyTree], count: int, params: PyTree, tokens: Array) -> PyTree:
    """Returns `run(params, tokens, count)`; where it is differentiated, `run(params, tokens, 1)`."""

    @custom_vjp
    def chosen(params: PyTree, tokens: Array) -> PyTree:
        return run(params, tokens, count)

    def forward(params: PyTree, tokens: Array) -> tuple[PyTree, PyTree]:
        return jax.vjp(lambda params, tokens: run(params, tokens, 1), params, tokens)

    chosen.defvjp(forward, lambda pullback, g: pullback(g))
    return chosen(params, tokens)
