"""Multi-head attention, and the back ends that compute it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array

from vit_flax.models.kernel_sharding import kernels_are_sharded
from vit_flax.models.placed import reshape
from vit_flax.models.precision import Precision, accumulator_dtype, target
from vit_flax.models.softmax_attention import late_attention, plain_attention, stored_attention

# part of the key of every jit cache: a function traced with one back end never runs under another
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
    """Computes softmax(q k^T scale + bias) v of (B, H, N, E) heads, by the back end that `attention_backend` chooses.

    The bias is of shape (1, H, N, N). Operands are in the dtype of `q`, the result in the dtype that `precision`
    stores.

    Raises:
        ValueError: the back end cannot compute these heads.
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
    """Returns the back end's name for (B, H, N, E) heads; that of 'auto' depends on the program alone.

    `is_plain`: queries, keys and values are of one shape, and there is no bias.
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
    """Whether the compilation target is a TPU or not given."""
    return target().platform in (None, "tpu")


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
    # it needs (B, N, H, E) heads of one width, a multiple of `step`; cuDNN's backward pass an even number of tokens
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
    """Sets JAX's default matmul precision, which products of other libraries' functions have."""
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
