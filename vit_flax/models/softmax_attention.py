"""Multi-head softmax attention for XLA, forward and backward: with float32 logits, stored ones, and the textbook's."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array

from vit_flax.models.fence import fence
from vit_flax.models.placed import custom_vjp
from vit_flax.models.precision import GPUS, HIGHEST, accumulator_dtype, rounded, target


@partial(custom_vjp, nondiff_argnums=(3, 4))
def late_attention(
    q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None
) -> Array:
    """Computes attention normalised after the product with the values, on (N, E) numbers instead of (N, N).

    The backward pass is written out for the same reason as in `vit_flax.models.linear.matmul`.
    """
    return _late_forward(q, k, v, scale, precision, bias)[0]


def heads_dot(a: Array, b: Array, a_axis: int, b_axis: int, precision: PrecisionLike, stored: Any = None) -> Array:
    """Contracts one axis of each (B, H, _, _) operand in float32 or wider, and returns the sum in dtype `stored`."""

    def product(a: Array, b: Array, dtype: DTypeLike) -> Array:
        return lax.dot_general(
            a, b, (((a_axis,), (b_axis,)), ((0, 1), (0, 1))), precision, preferred_element_type=dtype
        )

    wide = accumulator_dtype(a.dtype)
    return product(a, b, wide) if stored is None or stored == wide else rounded(product, a, b, stored)


def _rows_dot(a: Array, b: Array, precision: PrecisionLike, scale: float = 1.0) -> Array:
    """Contracts the rows of both (B, H, N, _) operands, and returns the scaled product in their dtype.

    In bfloat16 the product is computed transposed: XLA:CPU is slower where a batched product contracts the rows of
    both operands. In float32 that is no gain.
    """
    if a.dtype != jnp.bfloat16:
        return (heads_dot(a, b, 2, 2, precision) * scale).astype(a.dtype)
    turned = heads_dot(fence(b.swapaxes(2, 3)), a, 3, 2, precision) * scale
    return fence(turned.astype(a.dtype)).swapaxes(2, 3)


def _late_forward(
    q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None
) -> tuple[Array, Any]:
    dtype = q.dtype
    logits = heads_dot((q * scale).astype(dtype), k, 3, 3, precision)
    if bias is not None:
        logits = logits + bias
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(dtype)
    out = heads_dot(weights, v, 3, 2, precision) / total
    return out, (q, k, v, weights, total, out, bias)


def _late_backward(scale: float, precision: PrecisionLike, residuals: Any, g: Array) -> tuple[Array | None, ...]:
    q, k, v, weights, total, out, bias = residuals
    dtype = q.dtype
    g = g / total
    row = (g * out).sum(-1, keepdims=True)
    g = g.astype(dtype)
    dv = _rows_dot(weights, g, precision)
    dlogits = weights * (heads_dot(g, v, 3, 3, precision) - row)
    dbias = None if bias is None else dlogits.sum(0, keepdims=True).astype(bias.dtype)
    dlogits = dlogits.astype(dtype)
    dq = heads_dot(dlogits, k, 3, 2, precision) * scale
    dk = _rows_dot(dlogits, q, precision, scale)
    return dq.astype(dtype), dk, dv, dbias


late_attention.defvjp(_late_forward, _late_backward)


def stored_attention(
    q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None
) -> Array:
    """Computes attention with every (N, N) array stored in the dtype of the queries; softmax in float32.

    On a GPU tokens are padded to a multiple of 8 before any (N, N) array is computed: matrix products need rows of a
    multiple of 16 bytes, and XLA would copy the operands otherwise.
    """
    queries, keys = q.shape[2], k.shape[2]
    if target().platform in GPUS:
        q, k, v = (_padded(part, 2) for part in (q, k, v))
        bias = None if bias is None else _padded(_padded(bias, 2), 3)
    out: Any = _stored(q, k, v, scale, precision, keys, bias)
    return out[:, :, :queries]


def _padded(x: Array, axis: int) -> Array:
    return jnp.pad(x, [(0, -size % 8 if i == axis else 0) for i, size in enumerate(x.shape)])


@partial(custom_vjp, nondiff_argnums=(3, 4, 5))
def _stored(
    q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, keys: int, bias: Array | None
) -> Array:
    return _stored_forward(q, k, v, scale, precision, keys, bias)[0]


def _stored_forward(
    q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, keys: int, bias: Array | None
) -> tuple[Array, Any]:
    dtype, wide = q.dtype, accumulator_dtype(q.dtype)
    logits = heads_dot(q, k, 3, 3, precision, dtype).astype(wide) * scale
    logits = logits if bias is None else logits + bias
    if keys < k.shape[2]:
        logits = jnp.where(lax.broadcasted_iota(jnp.int32, logits.shape, 3) < keys, logits, -jnp.inf)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    if target().platform in GPUS:  # one kernel computes the softmax; a division afterwards is another
        weights, total = (weights / weights.sum(-1, keepdims=True)).astype(dtype), None
        out = heads_dot(weights, v, 3, 2, precision, dtype)
    else:
        weights = weights.astype(dtype)
        total = weights.astype(wide).sum(-1, keepdims=True)
        out = (heads_dot(weights, v, 3, 2, precision) / total).astype(dtype)
    return out, (q, k, v, weights, total, out, bias)


def _stored_backward(
    scale: float, precision: PrecisionLike, keys: int, residuals: Any, g: Array
) -> tuple[Array | None, ...]:
    q, k, v, weights, total, out, bias = residuals
    dtype, wide = q.dtype, accumulator_dtype(q.dtype)
    g = g.astype(wide) if total is None else g.astype(wide) / total
    row = (g * out.astype(wide)).sum(-1, keepdims=True)
    g = g.astype(dtype)
    dv = heads_dot(weights, g, 2, 2, precision, dtype)
    dlogits = weights.astype(wide) * (heads_dot(g, v, 3, 3, precision, dtype).astype(wide) - row)
    dbias = None if bias is None else dlogits.sum(0, keepdims=True).astype(bias.dtype)
    dlogits = (dlogits * scale).astype(dtype)
    dq = heads_dot(dlogits, k, 3, 2, precision, dtype)
    dk = heads_dot(dlogits, q, 2, 2, precision, dtype)
    return dq, dk, dv, dbias


_stored.defvjp(_stored_forward, _stored_backward)


def attention_weights(q: Array, k: Array, scale: float, bias: Array | None = None) -> Array:
    """Computes the attention weights (B, H, N, N), softmax(q k^T scale + bias), in float32 or wider."""
    wide = accumulator_dtype(q.dtype)
    logits = heads_dot(q.astype(wide) * scale, k.astype(wide), 3, 3, HIGHEST)
    return jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)


def plain_attention(
    q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None
) -> Array:
    """Computes the textbook's attention: softmax, then the product with the values."""
    logits = heads_dot(q, k, 3, 3, precision) * scale
    if bias is not None:
        logits = logits + bias
    return heads_dot(jax.nn.softmax(logits, axis=-1).astype(v.dtype), v, 3, 2, precision)
