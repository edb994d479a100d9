"""Multi-head attention, and the back ends that compute it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array

from vit_flax.models.fence import fence
from vit_flax.models.kernel_sharding import kernels_are_sharded
from vit_flax.models.placed import custom_vjp, reshape
from vit_flax.models.precision import GPUS, HIGHEST, Precision, accumulator_dtype, rounded, target

# part of the key of every jit cache: what was traced with one back end is never run for another
_chosen = jax.make_user_context("auto")


def attention_backend(name: str) -> AbstractContextManager[None]:
    """Makes models that run in this context, jitted ones too, compute attention by the back end of that name.

    'auto' (the default) never refuses: 'xla' where the model's `Precision` stores float32; else 'stored', and for TPUs
    (`compiled_for`; several also need `sharded_kernels`) 'rows', or 'splash' where an image has more tokens than that
    can take. 'xla' is our own form of it, for every dtype and device; 'stored' is the same with logits stored in the
    queries' dtype; 'rows' is our Pallas kernel for TPUs, which stores none. 'plain' is the textbook's, differentiated
    by JAX; ours is compared with it. 'jax_nn' and 'cudnn' are the two implementations of
    jax.nn.dot_product_attention, 'splash' is JAX's Pallas kernel for TPUs. Dropout of the attention weights has a form
    of its own, which no back end replaces.

    Raises:
        ValueError: there is no such back end; or, where a model is traced in the context, the back end cannot compute
            its attention on this device, in this dtype or with a bias.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown attention back end {name!r}; there are {', '.join(BACKENDS)}")
    return _chosen(name)


def dot_product_attention(
    q: Array, k: Array, v: Array, scale: float, precision: Precision, bias: Array | None = None
) -> Array:
    """Mixes the values of (B, H, N, E) heads by softmax(q k^T scale + bias), the bias being of shape (1, H, N, N).

    Operands are in the dtype of `q`, the result is what `precision` stores. `attention_backend` chooses how it is
    computed.
    """
    alike = q.shape == k.shape == v.shape
    name = backend_for(q.shape, q.dtype, precision, alike and bias is None)
    try:
        out = BACKENDS[name](q, k, v, scale, precision.products, bias)
    except NotImplementedError as error:
        raise ValueError(
            f"attention back end {name!r} cannot compute heads {q.shape} of {q.dtype}: {error}; "
            f"choose another with attention_backend(name): {', '.join(BACKENDS)}"
        ) from error
    return out.astype(precision.stored or accumulator_dtype(q.dtype))


def backend_for(shape: tuple[int, ...], dtype: DTypeLike, precision: Precision, is_plain: bool) -> str:
    """Returns the back end that computes attention of (B, H, N, E) heads; of 'auto', by what the program alone says.

    `is_plain`: queries, keys and values are of one shape and nothing is added to the logits.
    """
    name = _chosen.value
    if name != "auto":
        return name
    if precision.stored is None or dtype == accumulator_dtype(dtype):
        return "xla"
    _, heads, tokens, width = shape
    one = target().devices == 1 or kernels_are_sharded()  # the compiler does not divide a kernel among several
    if target().platform != "tpu" or not one or not is_plain or width % 8:
        return "stored"
    from vit_flax.models.row_attention import fits  # Pallas takes as long to import as all of Flax

    return "rows" if fits(tokens, heads, width) else "splash"


def for_tpu() -> bool:
    """Whether the program may be for a TPU: no other target is said."""
    return target().platform in (None, "tpu")


@partial(custom_vjp, nondiff_argnums=(3, 4))
def late_attention(
    q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None
) -> Array:
    """Computes attention normalised after the product with the values, on (N, E) numbers instead of (N, N).

    The backward pass is written out for the same reason as in `vit_flax.models.linear.matmul`.
    """
    return _late_forward(q, k, v, scale, precision, bias)[0]


def heads_dot(a: Array, b: Array, a_axis: int, b_axis: int, precision: PrecisionLike, stored: Any = None) -> Array:
    """Contracts one axis of each (B, H, _, _) operand in float32 or wider; the result is that sum as it is stored."""

    def product(a: Array, b: Array, dtype: DTypeLike) -> Array:
        return lax.dot_general(
            a, b, (((a_axis,), (b_axis,)), ((0, 1), (0, 1))), precision, preferred_element_type=dtype
        )

    wide = accumulator_dtype(a.dtype)
    return product(a, b, wide) if stored is None or stored == wide else rounded(product, a, b, stored)


def _rows_dot(a: Array, b: Array, precision: PrecisionLike, scale: float = 1.0) -> Array:
    """Contracts the rows of both (B, H, N, _) operands and scales; the result is of their dtype.

    In bfloat16 it is computed transposed: XLA:CPU is slower where both operands of a batch of products have their
    rows contracted. In float32 it is no gain.
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
    """Computes attention with all that is as large as (N, N) stored in the dtype of the queries; softmax in float32.

    A GPU's products want their operands' rows to be multiples of 16 bytes, or copies are made which are: for a GPU the
    tokens are padded instead, before anything is as large as (N, N).
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
    """Computes the weights (B, H, N, N) of attention, softmax(q k^T scale + bias), in float32 or wider."""
    wide = accumulator_dtype(q.dtype)
    logits = heads_dot(q.astype(wide) * scale, k.astype(wide), 3, 3, HIGHEST)
    return jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)


def plain_attention(
    q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None
) -> Array:
    """Computes attention as it is usually written: softmax, then the product with the values."""
    logits = heads_dot(q, k, 3, 3, precision) * scale
    if bias is not None:
        logits = logits + bias
    return heads_dot(jax.nn.softmax(logits, axis=-1).astype(v.dtype), v, 3, 2, precision)


def _jax_nn(q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None) -> Array:
    if q.dtype == jnp.float64:
        raise NotImplementedError("its softmax is float32 whatever the operands are")
    with matmul_precision(precision):
        return _by_jax(q, k, v, scale, bias, "xla", 1)


def _cudnn(q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None) -> Array:
    if target().platform in ("cpu", "tpu"):
        raise NotImplementedError(f"it needs an NVIDIA GPU, and this program is for a {target().platform}")
    if q.dtype not in (jnp.float16, jnp.bfloat16):
        raise NotImplementedError("it computes float16 and bfloat16 alone: set the model's dtype")
    if bias is not None and (q.shape[2] % 2 or k.shape[2] % 2):
        raise NotImplementedError("with a bias it needs even numbers of tokens")
    try:
        return _by_jax(q, k, v, scale, bias, "cudnn", 8)
    except RuntimeError as error:  # JAX asks for the version of cuDNN on the machine that compiles
        raise NotImplementedError(f"it needs an NVIDIA GPU and cuDNN here: {error}") from error


def _by_jax(q: Array, k: Array, v: Array, scale: float, bias: Array | None, implementation: Any, step: int) -> Array:
    # it wants (B, N, H, E) heads of one width, a multiple of `step`; cuDNN's backward pass an even number of tokens
    width = -(-max(q.shape[-1], v.shape[-1]) // step) * step
    batch, _, queries, _ = q.shape
    lengths: Any = {}
    if implementation == "cudnn" and bias is None:
        sizes = {"query_seq_lengths": queries, "key_value_seq_lengths": k.shape[2]}
        if any(size % 2 for size in sizes.values()):
            lengths = {name: jnp.full(batch, size, jnp.int32) for name, size in sizes.items()}

    def padded(part: Array) -> Array:
        tokens = part.shape[2] % 2 if lengths else 0
        sides = ((0, 0), (0, 0), (0, tokens), (0, width - part.shape[-1]))
        return jnp.pad(part.astype(q.dtype), sides).swapaxes(1, 2)

    bias = None if bias is None else bias.astype(q.dtype)
    out = jax.nn.dot_product_attention(
        padded(q), padded(k), padded(v), bias, scale=scale, implementation=implementation, **lengths
    )
    return out.swapaxes(1, 2)[:, :, :queries, : v.shape[-1]]


def matmul_precision(precision: PrecisionLike) -> AbstractContextManager[None]:
    """Makes products that name no precision, those of other people's functions, have this one."""
    name = "default" if precision is None else lax.Precision(precision).name.lower()
    return jax.default_matmul_precision(name)


def kernel_precision(operand: Array, precision: PrecisionLike) -> lax.Precision:
    """Returns the precision for a Pallas kernel: one pass over bfloat16 or full float32, nothing between."""
    one_pass = operand.dtype == jnp.bfloat16 or precision in (None, lax.Precision.DEFAULT)
    return lax.Precision.DEFAULT if one_pass else lax.Precision.HIGHEST


def _splash(q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None) -> Array:
    from vit_flax.models.splash import splash_attention  # Pallas takes as long to import as all of Flax

    return splash_attention(q, k, v, scale, precision, bias)


def _rows(q: Array, k: Array, v: Array, scale: float, precision: PrecisionLike, bias: Array | None = None) -> Array:
    from vit_flax.models.row_attention import row_attention

    if bias is not None:
        raise NotImplementedError("the kernel adds no bias")
    if not for_tpu():
        raise NotImplementedError(f"the kernel is for TPUs, and this program for a {target().platform}")
    parts = [reshape(part.swapaxes(1, 2), part.shape[0], part.shape[2], -1) for part in (q, k, v)]
    out = row_attention(parts, q.shape[1], scale, precision)
    return reshape(out, *out.shape[:2], q.shape[1], -1).swapaxes(1, 2)


BACKENDS: dict[str, Callable[..., Any]] = {
    "auto": late_attention,
    "xla": late_attention,
    "stored": stored_attention,
    "rows": _rows,
    "plain": plain_attention,
    "jax_nn": _jax_nn,
    "cudnn": _cudnn,
    "splash": _splash,
}
