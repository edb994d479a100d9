"""Attention by JAX's Pallas kernel for TPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.lax import PrecisionLike
from jaxtyping import Array

from vit_flax.models.attention_backends import for_tpu, kernel_precision, matmul_precision
from vit_flax.models.kernel_sharding import on_each_device
from vit_flax.models.placed import custom_vjp
from vit_flax.models.precision import target

LANES = 128  # the kernel takes multiples of that many tokens
LARGEST_BLOCK = 1024  # tokens; the logits of a block stay on the chip


def splash_attention(
    q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None
) -> Array:
    """Mixes the values of (B, H, N, E) heads without storing the (N, N) weights, neither forward nor backward.

    Numbers of tokens are padded to multiples of 128. Several TPUs need `kernel_sharding.sharded_kernels`. On the CPU
    it runs inside `jax.experimental.pallas.tpu.force_tpu_interpret_mode()`, for tests.

    Raises:
        NotImplementedError: a bias, another dtype than float32 and bfloat16, or a GPU.

    Reference: jax.experimental.pallas.ops.tpu.splash_attention; FlashAttention, arXiv 2205.14135.
    """
    if bias is not None:
        raise NotImplementedError("the kernel adds no bias")
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError("the kernel computes float32 and bfloat16 alone")
    if not for_tpu():
        raise NotImplementedError(f"the kernel is for TPUs, and this program for a {target().platform}")
    queries = q.shape[2]
    keys = k.shape[2]

    def attend(*parts: Array) -> Array:
        out: Any = _attend(*map(_rows, parts), keys, precision)
        return out[:, :queries].reshape(*parts[0].shape[:3], -1)

    parts = (q * scale).astype(q.dtype), k, v.astype(q.dtype)
    return on_each_device(attend, parts, ("images", "heads", None, None))


def _rows(x: Array) -> Array:
    """Returns (B H, N, E) heads, N padded: the kernel knows no batch, and interpreted ones cannot be vmapped."""
    return jnp.pad(x.reshape(-1, *x.shape[2:]), ((0, 0), (0, -x.shape[2] % LANES), (0, 0)))


@partial(custom_vjp, nondiff_argnums=(3, 4))
def _attend(q: Array, k: Array, v: Array, keys: int, precision: PrecisionLike) -> Array:
    # the kernel's products name no precision, its backward pass's neither, which is traced when this has returned
    with _as_kernel(q, precision):
        return _kernel(q, k, v, keys)


def _attend_forward(q: Array, k: Array, v: Array, keys: int, precision: PrecisionLike) -> tuple[Array, Any]:
    with _as_kernel(q, precision):
        return jax.vjp(partial(_kernel, keys=keys), q, k, v)


def _attend_backward(keys: int, precision: PrecisionLike, pullback: Any, g: Array) -> tuple[Array, ...]:
    with _as_kernel(g, precision):
        return pullback(g)


@contextmanager
def _as_kernel(operand: Array, precision: PrecisionLike) -> Iterator[None]:
    # 32 bits: places in memory would be 64-bit numbers in JAX's 64-bit mode, which a TPU's compiler does not take
    with matmul_precision(kernel_precision(operand, precision)), jax.enable_x64(False):
        yield


_attend.defvjp(_attend_forward, _attend_backward)


def _kernel(q: Array, k: Array, v: Array, keys: int) -> Array:
    rows, columns = q.shape[1], k.shape[1]
    block_q, block_kv = _block(rows), _block(columns)
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.FullMask((rows, columns))]),  # one for all heads
        block_sizes=kernels.BlockSizes(
            block_q, block_kv, block_kv, block_q, block_kv, block_kv, use_fused_bwd_kernel=True
        ),
    )
    segments = None
    if keys != columns:  # the padded keys are a segment of their own
        segments = kernels.SegmentIds(jnp.zeros(rows, jnp.int32), (jnp.arange(columns) >= keys).astype(jnp.int32))
    out: Any = kernel(q, k, v, segments)
    return out


def _block(tokens: int) -> int:
    return max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if tokens % size == 0)
