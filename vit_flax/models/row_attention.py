"""Attention by a Pallas kernel for TPUs that takes queries, keys and values as a linear layer writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.lax import PrecisionLike
from jaxtyping import Array, Float

from vit_flax.chips import chip_of_kind
from vit_flax.models.attention_backends import kernel_precision
from vit_flax.models.kernel_sharding import head_shards, on_each_device
from vit_flax.models.placed import custom_vjp
from vit_flax.models.precision import target

LANES = 128  # columns that a register of a TPU holds
SCOPE = 16 * 2**20  # bytes of fast memory that a kernel has unless it asks for more


def row_attention(
    parts: Sequence[Float[Array, "b n d"]],
    heads: int,
    scale: float,
    precision: PrecisionLike,
    bias: Float[Array, " d"] | None = None,
) -> Float[Array, "b n e"]:
    """Mixes values by softmax(q k^T scale); nothing as large as (N, N) leaves the chip, neither forward nor backward.

    The kernel takes all tokens of an image at once, so that softmax needs no second look at a row, any number of
    tokens without padding, and heads as columns, so that none is laid out anew. The backward pass keeps the parts alone
    and computes the weights again. Several TPUs need `kernel_sharding.sharded_kernels`. On the CPU it runs inside
    `jax.experimental.pallas.tpu.force_tpu_interpret_mode()`, for tests.

    Args:
        parts: queries, keys and values (B, N, H E), or one array of all three side by side.
        heads: H.
        scale: of the logits.
        precision: of float32 products.
        bias: what is in the parts already, added to every token; only its gradient is computed here, where the parts'
            gradient lies on the chip. Whoever added it must stop its gradient there.

    Raises:
        NotImplementedError: another dtype than float32 and bfloat16, or parts of several shapes.
    """
    if parts[0].dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError("the kernel computes float32 and bfloat16 alone")
    if len(parts) == 3 and not parts[0].shape == parts[1].shape == parts[2].shape:
        raise NotImplementedError("the kernel takes queries, keys and values of one shape")
    shards = head_shards()
    # of every image, so that it is divided as they are; nothing reads it
    given = [] if bias is None else [jnp.broadcast_to(bias, (parts[0].shape[0], 1, *bias.shape))]
    if shards > 1 and len(parts) == 1:  # a part of the columns is no part of the heads
        parts = jnp.split(parts[0], 3, axis=-1)
        given = [part for array in given for part in jnp.split(array, 3, axis=-1)]

    def attend(*arrays: Array) -> Any:
        own, added = arrays[: len(parts)], arrays[len(parts) :]
        return _attend(own, added, heads // shards, scale, kernel_precision(own[0], precision))

    return on_each_device(attend, [*parts, *given], ("images", None, "heads"))


@partial(custom_vjp, nondiff_argnums=(2, 3, 4))
def _attend(parts: tuple[Array, ...], added: tuple[Array, ...], heads: int, scale: float, precision: Any) -> Array:
    return _forward(parts, added, heads, scale, precision)[0]


def _forward(
    parts: tuple[Array, ...], added: tuple[Array, ...], heads: int, scale: float, precision: Any
) -> tuple[Array, Any]:
    width = sum(part.shape[-1] for part in parts) // 3
    body = partial(_forward_kernel, heads, scale, precision)
    [out] = _call(body, parts, [width], [], heads, products=2)
    return out, (parts, added)


def _backward(
    heads: int, scale: float, precision: Any, residuals: tuple[tuple[Array, ...], tuple[Array, ...]], g: Array
) -> tuple[Any, Any]:
    parts, added = residuals
    body = partial(_backward_kernel, heads, scale, precision, len(parts))
    widths = [part.shape[-1] for part in parts]
    found = _call(body, (*parts, g), widths, widths if added else [], heads, products=5)
    sums = [total.astype(array.dtype) for total, array in zip(found[len(parts) :], added, strict=True)]
    return tuple(found[: len(parts)]), tuple(sums)


_attend.defvjp(_forward, _backward)


def _call(
    body: Any, arrays: Sequence[Array], widths: Sequence[int], sums: Sequence[int], heads: int, products: int
) -> Sequence[Array]:
    """Runs a kernel on one image after the other; of its results some have a row a token, others one of sums."""
    batch, tokens, _ = arrays[0].shape
    dtype = arrays[0].dtype
    inputs = [array.shape[-1] for array in arrays]
    width = sum(widths) // (3 if products > 2 else 1)
    logits = batch * heads * tokens * tokens
    limit = fast_memory(tokens, sum(inputs) + sum(widths), heads, width // heads, dtype.itemsize, products == 2)

    def of_image(width: int, rows: int = tokens) -> pl.BlockSpec:
        return pl.BlockSpec((1, rows, width), lambda image: (image, 0, 0))

    call: Any = pl.pallas_call(
        body,
        grid=(batch,),
        in_specs=[of_image(width) for width in inputs],
        out_specs=[*(of_image(width) for width in widths), *(of_image(width, 1) for width in sums)],
        out_shape=[
            *(jax.ShapeDtypeStruct((batch, tokens, width), dtype) for width in widths),
            *(jax.ShapeDtypeStruct((batch, 1, width), jnp.float32) for width in sums),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=max(SCOPE, limit)),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * logits * (width // heads),
            transcendentals=logits,
            bytes_accessed=0,  # beyond operands and results, which XLA counts by itself
        ),
    )
    with jax.enable_x64(False):  # places in memory would be 64-bit numbers, which a TPU's compiler does not take
        found: Any = call(*arrays)
    return found


def fits(tokens: int, heads: int, head_dim: int) -> bool:
    """Whether the target's fast memory holds what both kernels take of an image in bfloat16."""
    chip = chip_of_kind(target().kind)
    most = (chip.fast_memory if chip else SCOPE) * 4 // 5
    heads //= head_shards()
    forward = fast_memory(tokens, 4 * heads * head_dim, heads, head_dim, 2, is_forward=True)
    return max(forward, fast_memory(tokens, 7 * heads * head_dim, heads, head_dim, 2)) <= most


def fast_memory(tokens: int, columns: int, heads: int, head_dim: int, itemsize: int, is_forward: bool = False) -> int:
    """Returns the bytes that a kernel takes at the most: two images' blocks, and what is spilt of a column of heads.

    A column of one head spills two arrays of logits (libtpu 0.0.52: 91.3 of the 95.4 MiB given to heads of 128 and
    1,370 tokens, backward), of several three. Where it has many heads, a forward kernel is given a fifth more: libtpu
    took up to 15 % more than the rest of the formula (heads of 72, 80 and 88, 1,025 tokens).
    """
    rows, lanes = -(-tokens // 16) * 16, -(-tokens // LANES) * LANES
    count = _heads_of_column(heads, head_dim)
    spilt = (3 + 5 * count) * rows * max(LANES, head_dim) * 4 + min(1 + count, 3) * rows * lanes * 4
    taken = 2 * rows * columns * itemsize + spilt
    return taken * 6 // 5 if is_forward and count > 2 else taken


def _dot(a: Array, b: Array, a_axis: int, b_axis: int, precision: Any) -> Array:
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), precision, preferred_element_type=jnp.float32)


def _heads_of_column(heads: int, size: int) -> int:
    count = math.lcm(size, LANES) // size
    return heads if heads % count else count


def _each_column(heads: int, size: int, body: Callable[[Any, int], None]) -> None:
    """Runs `body` on one column after the other: as few heads as fill whole lanes, or all of them.

    `body` gets where a column of that many heads starts, and the number of heads in it. A loop compiles one of them.
    """
    count = _heads_of_column(heads, size)
    if heads == count:
        body(0, heads)
        return

    def step(index: Array, nothing: int) -> int:
        body(pl.multiple_of(index * count * size, LANES), count)
        return nothing

    lax.fori_loop(0, heads // count, step, 0)


def _columns(refs: Sequence[Any], start: Any, width: int) -> list[tuple[Any, Any]]:
    """Returns where queries, keys and values of a column of heads are, or their gradients."""
    whole = sum(ref.shape[-1] for ref in refs) // 3
    firsts = [(ref, 0) for ref in refs] if len(refs) == 3 else [(refs[0], part * whole) for part in range(3)]
    return [(ref, (0, slice(None), pl.ds(first + start, width))) for ref, first in firsts]


def _weights(q: Array, k: Array, scale: float, precision: Any) -> tuple[Array, Array]:
    logits = _dot(q, k, 1, 1, precision) * scale
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights, weights.sum(-1, keepdims=True)


def _forward_kernel(heads: int, scale: float, precision: Any, *refs: Any) -> None:
    *parts, out = refs
    size = out.shape[-1] // heads

    def column(start: Any, count: int) -> None:
        wide = [ref[at] for ref, at in _columns(parts, start, count * size)]
        found = []
        for head in range(count):
            q, k, v = (part[:, head * size : (head + 1) * size] for part in wide)
            weights, total = _weights(q, k, scale, precision)
            mixed = _dot(weights.astype(v.dtype), v, 1, 0, precision) / total
            found.append(mixed.astype(out.dtype))
        out[0, :, pl.ds(start, count * size)] = jnp.concatenate(found, axis=1)

    _each_column(heads, size, column)


def _backward_kernel(heads: int, scale: float, precision: Any, number: int, *refs: Any) -> None:
    parts, gradient, results = refs[:number], refs[number], refs[number + 1 : 2 * number + 1]
    sums = refs[2 * number + 1 :]
    size = gradient.shape[-1] // heads

    def column(start: Any, count: int) -> None:
        wide = [ref[at] for ref, at in _columns(parts, start, count * size)]
        gs = gradient[0, :, pl.ds(start, count * size)]
        found: list[list[Array]] = [[], [], []]
        for head in range(count):
            q, k, v, g = (part[:, head * size : (head + 1) * size] for part in (*wide, gs))
            weights, total = _weights(q, k, scale, precision)
            weights = weights / total
            dweights = _dot(g, v, 1, 1, precision)
            row = (weights * dweights).sum(-1, keepdims=True)
            dlogits = (weights * (dweights - row) * scale).astype(q.dtype)
            found[0].append(_dot(dlogits, k, 1, 0, precision))
            found[1].append(_dot(dlogits, q, 0, 0, precision))
            found[2].append(_dot(weights.astype(q.dtype), g, 0, 0, precision))
        for (ref, at), values in zip(_columns(results, start, count * size), found, strict=True):
            ref[at] = jnp.concatenate([value.astype(ref.dtype) for value in values], axis=1)
        for (ref, at), values in zip(_columns(sums, start, count * size) if sums else [], found, strict=bool(sums)):
            ref[at] = jnp.concatenate([value.sum(0, keepdims=True) for value in values], axis=1)

    _each_column(heads, size, column)
