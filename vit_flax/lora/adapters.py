"""The arithmetic of LoRA: initial adapters, and adapters merged into frozen parameters.

The trained parameters are a pytree with paths like the model's: `blocks_0/attn/q/lora_a` (in, r) and `.../lora_b`
(r, out) of an adapter, and fully trained parameters under their own paths. All others are the frozen pytree.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, PyTree

from vit_flax.lora.config import LoraConfig
from vit_flax.lora.places import Place, choose, find_place

A, B = "lora_a", "lora_b"


def begin(key: Array, params: PyTree, config: LoraConfig) -> tuple[PyTree, PyTree]:
    """Returns the initial trained parameters with the adapters, and the frozen ones; outputs are unchanged.

    Raises:
        ValueError: a pattern of the config matches no layer.

    Reference: peft's initialisation, A as torch.nn.Linear's weights, uniform within 1 / sqrt(inputs), B zero.
    """
    flat = _flat(params)
    chosen = choose(config, {path: leaf.shape for path, leaf in flat.items()})
    trained = {path: leaf for path, leaf in flat.items() if path in chosen.whole}
    frozen = {path: leaf for path, leaf in flat.items() if path not in chosen.whole}
    for number, place in enumerate(chosen.places):
        kernel = flat[place.kernel]
        bound = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
        rank = config.rank_of(place.name)
        shape = (*kernel.shape[:-1], rank)
        own = jax.random.fold_in(key, number)
        trained[f"{place.name}/{A}"] = jax.random.uniform(own, shape, kernel.dtype, -bound, bound)
        trained[f"{place.name}/{B}"] = jnp.zeros((rank, place.stop - place.start), kernel.dtype)
    for place in chosen.biases:
        if place.kernel == f"{place.name}/kernel":
            trained[place.bias] = frozen.pop(place.bias)
        else:
            trained[f"{place.name}/bias"] = flat[place.bias][place.start : place.stop]
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def merged(frozen: PyTree, trained: PyTree, config: LoraConfig) -> PyTree:
    """Merges adapters into the kernels: W + A B alpha / r."""
    flat, products = parts(frozen, trained, config)
    for kernel, pairs in products.items():
        a, b = jnp.concatenate([a for a, _ in pairs], -1), jnp.concatenate([b for _, b in pairs])
        # in full precision: by default a TPU rounds the operands to bfloat16, and these are parameters
        change: Any = jnp.tensordot(a, b, 1, precision=lax.Precision.HIGHEST)
        flat[kernel] = (flat[kernel] + change).astype(flat[kernel].dtype)
    return unflatten_dict(flat, sep="/")


def parts(
    frozen: PyTree, trained: PyTree, config: LoraConfig
) -> tuple[dict[str, Array], dict[str, list[tuple[Array, Array]]]]:
    """Returns the model's parameters by path without the adapters, and the adapters' (A, B) by their kernel's path.

    B is scaled and zero-padded to the columns of the kernel.
    """
    flat, own = _flat(frozen), _flat(trained)
    shapes = {path: leaf.shape for path, leaf in (*own.items(), *flat.items())}
    products: dict[str, list[tuple[Array, Array]]] = {}
    for path, leaf in own.items():
        name, _, kind = path.rpartition("/")
        if kind == B:
            continue
        place = find_place(name, shapes) if kind in (A, "bias") else None
        if kind == A:
            assert place is not None
            products.setdefault(place.kernel, []).append(_columns(place, leaf, own[f"{name}/{B}"], config, shapes))
        elif place is not None and place.bias != path:
            bias = flat[place.bias]
            flat[place.bias] = jnp.concatenate([bias[: place.start], leaf, bias[place.stop :]])
        else:
            flat[path] = leaf
    return flat, products


def _columns(
    place: Place, a: Array, b: Array, config: LoraConfig, shapes: dict[str, tuple[int, ...]]
) -> tuple[Array, Array]:
    """Returns A, and B scaled and zero-padded to the kernel's columns."""
    after = shapes[place.kernel][-1] - place.stop
    return a, jnp.pad(b * config.scale(place.name, b.shape[0]), ((0, 0), (place.start, after)))


def _flat(tree: PyTree) -> dict[str, Any]:
    flat: dict[str, Any] = flatten_dict(tree, sep="/")  # pyright: ignore[reportAssignmentType]
    return dict(flat)
