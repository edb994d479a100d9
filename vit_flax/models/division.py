"""Kernels that the compiler does not divide among devices: each device computes its own images and heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Division:
    """Axes of a mesh, and what of activations they split."""

    mesh: Mesh
    images: tuple[str, ...]
    heads: str


# part of the key of every jit cache, as `compiled_for` is
_division = jax.make_user_context(None)


def divided(mesh: Mesh, images: tuple[str, ...], heads: str) -> AbstractContextManager[None]:
    """Makes kernels of models traced in this context run on each device of the mesh, on its part of images and heads.

    The mesh must divide both.
    """
    return _division(Division(mesh, images, heads))


def mesh_in_use() -> Mesh | None:
    """Returns the mesh whose devices compute together; None where a program is for one device."""
    found: Division | None = _division.value
    return None if found is None else found.mesh


def is_divided() -> bool:
    """Whether kernels are told how to run on several devices."""
    return _division.value is not None


def head_shards() -> int:
    """Returns among how many devices the heads of an image are split."""
    found: Division | None = _division.value
    return 1 if found is None else found.mesh.shape[found.heads]


def on_each_device(function: Callable[..., Array], arrays: Sequence[Array], axes: tuple[str | None, ...]) -> Array:
    """Calls a function with each device's own part of the arrays, which are split alike and as the result is.

    `axes` says of each axis whether it is of 'images', of 'heads' (one after the other, perhaps with their columns) or
    of neither.
    """
    found: Division | None = _division.value
    if found is None:
        return function(*arrays)
    names = {"images": found.images, "heads": found.heads if head_shards() > 1 else None, None: None}
    spec = PartitionSpec(*(names[axis] for axis in axes))
    mapped = jax.shard_map(function, mesh=found.mesh, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)
    out: Array = mapped(*arrays)
    return out
