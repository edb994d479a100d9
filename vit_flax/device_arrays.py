"""Host arrays, memory-mapped ones too, as JAX arrays."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from vit_flax.convert import ConversionError

_ALIGNMENT = 64  # bytes; alignment of JAX's arrays on the CPU


def on_device(array: np.ndarray) -> jax.Array:
    """Copies a NumPy array, memory-mapped or not, to JAX's default device.

    Raises:
        ConversionError: the array is float64 and JAX's 64-bit mode is off.
    """
    if array.dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ConversionError(
            "the tensors are float64, which JAX would cut to float32: call jax.config.update('jax_enable_x64', True) "
            "first, or cast them to float32 yourself"
        )
    # always a copy: the result must not change with a memory-mapped file
    if not array.flags.c_contiguous:
        return jax.device_put(np.require(array, requirements="A")).block_until_ready()  # JAX transposes as it copies
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    own = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(own, array)
    return jax.device_put(own)  # on the CPU without another copy


def on_device_from_any_thread() -> Callable[[np.ndarray], jax.Array]:
    """Returns `on_device` with this thread's 64-bit mode and default device: JAX's contexts belong to one thread."""
    wide, device = jax.config.jax_enable_x64, jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def inside(array: np.ndarray) -> jax.Array:
        with jax.enable_x64(wide), jax.default_device(device):
            return on_device(array)

    return inside
