"""Inference in microbatches that stay in a CPU's caches: faster, and in less memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vit_flax.config import ViTConfig


class Device(Protocol):
    """The attributes of a jax.Device that are used."""

    @property
    def platform(self) -> str:
        """'cpu', 'gpu' or 'tpu'."""
        ...

    @property
    def device_kind(self) -> str:
        """The chip's kind, such as 'TPU v5 lite'."""
        ...

    @property
    def id(self) -> int:
        """The device's number among those of all processes."""
        ...

    @property
    def process_index(self) -> int:
        """The index of the device's process."""
        ...


# Measured (`vit_flax_whole` in benchmarks/README.md): the size of a microbatch in bytes of its largest activation, the
# MLP's hidden layer, or in tokens where that is more, since products of fewer rows take longer per row.
CPU_ACTIVATION_BYTES = 10 * 2**20
CPU_TOKENS = 1600


def microbatch_size(
    config: ViTConfig, batch_size: int, dtype: DTypeLike | None = None, devices: Sequence[Device] | None = None
) -> int:
    """Returns the number of images of a microbatch; `batch_size` itself where microbatches are no gain.

    Microbatches are a gain on a single CPU device only.

    Args:
        config: config of the model.
        batch_size: images of a call, a multiple of the result.
        dtype: dtype of the operands of matrix products; None: float32.
        devices: devices that share the batch; None: JAX's default device.

    Raises:
        ValueError: the batch is empty.
    """
    if batch_size < 1:
        raise ValueError(f"a batch has at least one image, got batch_size {batch_size}")
    devices = devices or jax.devices()[:1]
    if len(devices) > 1 or devices[0].platform != "cpu":
        return batch_size
    tokens = config.num_patches + config.num_prefix_tokens
    hidden = tokens * config.mlp_dim * jnp.dtype(dtype or jnp.float32).itemsize
    fitting = max(1, CPU_ACTIVATION_BYTES // hidden, CPU_TOKENS // tokens)
    size = max(part for part in range(1, min(fitting, batch_size) + 1) if batch_size % part == 0)
    # a batch such as 31 has no divisor large enough to be fast
    return size if 3 * size > fitting else batch_size


def in_microbatches(compute: Callable[[PyTree], PyTree], images: PyTree, size: int) -> PyTree:
    """Computes `compute(images)` for `size` images at a time, as one loop of a jitted function.

    Args:
        compute: maps images (N, ...) to arrays whose first axis is N, each row from its own image alone.
        images: an array, or a pytree of arrays, of a multiple of `size` images.
        size: images computed together, as from `microbatch_size`.

    Raises:
        ValueError: `size` does not divide the images.
    """
    count = len(jax.tree.leaves(images)[0])
    if size < 1 or count % size:
        raise ValueError(f"{count} images do not divide into parts of {size}; take a divisor, as from microbatch_size")
    if count == size:
        return compute(images)
    parts = jax.tree.map(lambda x: x.reshape(count // size, size, *x.shape[1:]), images)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), lax.map(compute, parts))
