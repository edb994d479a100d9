"""Sharding of Pallas kernels, which the compiler does not partition: each device computes its own images and heads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array

AnyMesh = Mesh | AbstractMesh  # a program is traced for devices that may not exist


@dataclasses.dataclass(frozen=True)
class KernelSharding:
    """The axes of a mesh that shard the batch and the heads of a kernel."""

    mesh: AnyMesh
    images: tuple[str, ...]
    heads: str


# part of the key of every jit cache, as `compiled_for` is
_kernel_sharding = jax.make_user_context(None)


def sharded_kernels(mesh: AnyMesh, images: tuple[str, ...], heads: str) -> AbstractContextManager[None]:
    """Shards the kernels of models traced in this context over a mesh, by images and by heads; it must divide both."""
    return _kernel_sharding(KernelSharding(mesh, images, heads))


def mesh_in_use() -> AnyMesh | None:
    """Returns the mesh that models are traced for; None where a program is for one device."""
    found: KernelSharding | None = _kernel_sharding.value
    return None if found is None else found.mesh


def kernels_are_sharded() -> bool:
    """Whether models are traced in the context of `sharded_kernels`."""
    return _kernel_sharding.value is not None


def head_shards() -> int:
    """Returns how many devices share the heads of an image."""
    found: KernelSharding | None = _kernel_sharding.value
    return 1 if found is None else found.mesh.shape[found.heads]


def image_shards() -> int:
    """Returns how many devices share the images of a batch, as far as `sharded_kernels` says it."""
    found: KernelSharding | None = _kernel_sharding.value
    return 1 if found is None else math.prod(found.mesh.shape[axis] for axis in found.images)


def on_each_device(function: Callable[..., Array], arrays: Sequence[Array], axes: tuple[str | None, ...]) -> Array:
    """Calls a function under jax.shard_map, arguments and result sharded alike.

    `axes` says of each axis whether it is of 'images', of 'heads' (one after the other, perhaps with their columns) or
    of neither.
    """
    found: KernelSharding | None = _kernel_sharding.value
    if found is None:
        return function(*arrays)
    names = {"images": found.images, "heads": found.heads if head_shards() > 1 else None, None: None}
    spec = PartitionSpec(*(names[axis] for axis in axes))
    mapped = jax.shard_map(function, mesh=found.mesh, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)
    out: Array = mapped(*arrays)
    return out
