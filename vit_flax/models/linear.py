"""A linear layer that names its products, forward and backward."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.chips import chip_of_kind
from vit_flax.models.fence import fence
from vit_flax.models.placed import custom_vjp, explicit_sharding
from vit_flax.models.precision import Precision, accumulator_dtype, rounded, target

Source = tuple[Callable[[Array], Array], Array]


def contract(
    a: Array,
    b: Array,
    a_axes: tuple[int, ...],
    b_axes: tuple[int, ...],
    precision: PrecisionLike,
    out_sharding: NamedSharding | None = None,
    stored: DTypeLike | None = None,
    bias: Array | None = None,
) -> Array:
    """Sums the product of `a` and `b` over the named axes in float32 or wider; the result is that sum as it is stored.

    A `bias` is added before it is rounded.
    """
    product = partial(_product, dims=((a_axes, b_axes), ((), ())), precision=precision, out_sharding=out_sharding)
    wide = accumulator_dtype(a.dtype)
    if stored is None or stored == wide:
        return product(a, b, wide) if bias is None else product(a, b, wide) + bias
    return rounded(product, a, b, stored, bias)


def _product(a: Array, b: Array, dtype: DTypeLike, dims: Any, precision: PrecisionLike, out_sharding: Any) -> Array:
    return lax.dot_general(a, b, dims, precision, preferred_element_type=dtype, out_sharding=out_sharding)


@partial(custom_vjp, nondiff_argnums=(2, 3))
def matmul(x: Array, kernel: Array, dtype: DTypeLike, precision: PrecisionLike) -> Array:
    """Multiplies the last axis of `x` with a (in, out ...) kernel; operands in `dtype`, the sum in float32 or wider.

    The backward pass is written out because the transposed products that differentiation derives are slower on every
    backend (they copy an operand), and in bfloat16 one of them does not run on the CPU at all. Reverse-mode and
    forward-over-reverse differentiation work; plain forward mode (jax.jvp) does not.
    """
    return contract(x.astype(dtype), kernel.astype(dtype), (x.ndim - 1,), (0,), precision)


def _matmul_forward(x: Array, kernel: Array, dtype: DTypeLike, precision: PrecisionLike) -> tuple[Array, Any]:
    operand = fence(x.astype(dtype), kernel)
    y = contract(operand, kernel.astype(dtype), (x.ndim - 1,), (0,), precision)
    return y, (operand, kernel, jnp.zeros(0, x.dtype))  # an empty array remembers the dtype that dx must have


def _matmul_backward(dtype: DTypeLike, precision: PrecisionLike, residuals: Any, g: Array) -> tuple[Array, Array]:
    operand, kernel, like_x = residuals
    g = fence(g.astype(dtype), kernel)
    leading, out = tuple(range(operand.ndim - 1)), tuple(range(operand.ndim - 1, g.ndim))
    lies = explicit_sharding(operand), explicit_sharding(kernel)  # gradients lie where their values do
    dx = contract(g, kernel.astype(dtype), out, tuple(range(1, kernel.ndim)), precision, lies[0])
    dkernel = contract(operand, g, leading, leading, precision, lies[1])  # operands stay (batch, tokens, width)
    return dx.astype(like_x.dtype), dkernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def stored_linear(
    x: Array, kernel: Array, bias: Array | None, dtype: DTypeLike, precision: PrecisionLike, inner: int = 1
) -> Array:
    """Computes `x @ kernel + bias` with operands, result and the gradient of `x` in `dtype`, sums in float32.

    The kernel is (in ..., out ...), the first `inner` of its axes, and the bias (out ...): axes of heads stay apart,
    for to join them is a copy on a TPU. A GPU's compiler moves an operand to contract two axes: there, and
    where no target is said, all are matrices.
    """
    if target().platform == "tpu" or explicit_sharding(x) is not None:
        return _stored_linear(x, kernel, bias, dtype, precision, inner)
    inputs, outputs = kernel.shape[:inner], kernel.shape[inner:]
    kernel = kernel.reshape(math.prod(inputs), -1)
    bias = None if bias is None else bias.reshape(-1)
    y: Any = _stored_linear(x.reshape(-1, kernel.shape[0]), kernel, bias, dtype, precision, 1)
    return y.reshape(*x.shape[: x.ndim - inner], *outputs)


@partial(custom_vjp, nondiff_argnums=(3, 4, 5))
def _stored_linear(
    x: Array, kernel: Array, bias: Array | None, dtype: DTypeLike, precision: PrecisionLike, inner: int
) -> Array:
    return _stored_linear_forward(x, kernel, bias, dtype, precision, inner)[0]


def _stored_linear_forward(
    x: Array, kernel: Array, bias: Array | None, dtype: DTypeLike, precision: PrecisionLike, inner: int
) -> tuple[Array, Any]:
    operand = x.astype(dtype)
    axes = _last(x, inner), tuple(range(inner))
    y = contract(operand, kernel.astype(dtype), *axes, precision, stored=dtype, bias=bias)
    return y, (operand, kernel, bias, jnp.zeros(0, x.dtype))


def _last(x: Array, count: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - count, x.ndim))


def _stored_linear_backward(
    dtype: DTypeLike, precision: PrecisionLike, inner: int, residuals: Any, g: Array
) -> tuple[Array, Array, Array | None]:
    operand, kernel, bias, like_x = residuals
    outer = kernel.ndim - inner
    # elsewhere than on a TPU it would be computed once more, in float32, to be added up over tokens
    g = lax.optimization_barrier(g) if target().platform != "tpu" or _stays_on_chip(g, operand) else g
    lies = explicit_sharding(operand), explicit_sharding(kernel)  # gradients lie where their values do
    dx = contract(g, kernel.astype(dtype), _last(g, outer), _last(kernel, outer), precision, lies[0], dtype)
    leading = tuple(range(g.ndim - outer))
    dbias = None if bias is None else g.astype(accumulator_dtype(dtype)).sum(leading).astype(bias.dtype)
    dkernel = contract(operand, g, leading, leading, precision, lies[1]).astype(kernel.dtype)
    return dx.astype(like_x.dtype), dkernel, dbias


def _stays_on_chip(g: Array, operand: Array) -> bool:
    """Whether a TPU's fast memory holds the gradients of a block, twelve times as wide as its tokens.

    Then a barrier leaves them there. Where they go through the main memory, what computes one adds it up over tokens
    as well, which a barrier would prevent.
    """
    chip = chip_of_kind(target().kind)
    tokens = min(g.size, operand.size) * g.dtype.itemsize // target().devices
    return chip is not None and 12 * tokens <= chip.fast_memory


_stored_linear.defvjp(_stored_linear_forward, _stored_linear_backward)


class Linear(nn.Module):
    """Multiplies the last axis with a kernel and adds a bias.

    The result is of the dtype that `precision` stores: float32 or wider, unless it says another.

    Reference: torch.nn.Linear, kernel = weight.T; initialised as the reference's (normal, std 0.02; bias 0).
    """

    features: int
    use_bias: bool = True
    precision: Precision = Precision()

    def __call__(
        self, x: Float[Array, "... d"], freeze_bias: bool = False, source: Source | None = None
    ) -> Float[Array, "... e"]:
        """Returns `x @ kernel + bias`.

        Args:
            x: tokens.
            freeze_bias: whoever takes the result computes the bias's gradient.
            source: an elementwise function and the array of which it is `x`. Where activations are stored as
                `precision` says, the backward pass keeps that array, and `x` is computed again.
        """
        kernel, bias = self._parameters(x.shape[-1])
        bias = lax.stop_gradient(bias) if freeze_bias else bias
        if source is None or self.precision.stored is None:
            return self._apply(x, kernel, bias)
        function, kept = source

        def apply(kept: Array, kernel: Array, bias: Array | None) -> Array:
            return self._apply(function(kept), kernel, bias)

        # outside of a loop XLA may find that `x` is there already, and keep both
        return jax.checkpoint(apply, prevent_cse=False)(kept, kernel, bias)

    def parts(self, x: Float[Array, "... d"], count: int, heads: int) -> list[Float[Array, "... h e"]]:
        """Returns `count` results, each of its own part of the kernel, with an axis of heads.

        Parts of one result would have to be copied out, as heads are that are split afterwards.
        """
        kernel, bias = self._parameters(x.shape[-1])
        kernels = jnp.split(kernel.reshape(kernel.shape[0], count * heads, -1), count, axis=1)
        biases = [None] * count if bias is None else jnp.split(bias.reshape(count * heads, -1), count)
        return [self._apply(x, *part) for part in zip(kernels, biases, strict=True)]

    def join(self, x: Float[Array, "... h d"]) -> Float[Array, "... e"]:
        """Returns the result of heads that lie in an axis of their own."""
        kernel, bias = self._parameters(x.shape[-2] * x.shape[-1])
        return self._apply(x, kernel.reshape(*x.shape[-2:], -1), bias, inner=2)

    @nn.compact
    def _parameters(self, inputs: int) -> tuple[Array, Array | None]:
        params = self.precision.params
        kernel = self.param("kernel", nn.initializers.normal(0.02), (inputs, self.features), params)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), params) if self.use_bias else None

    def _apply(self, x: Array, kernel: Array, bias: Array | None, inner: int = 1) -> Array:
        dtype, products = self.precision.operand_dtype(x, kernel), self.precision.products
        if self.precision.stored is None:
            y: Any = matmul(x, kernel, dtype, products)
            return y if bias is None else y + bias
        y = stored_linear(x, kernel, bias, dtype, products, inner)
        return self.precision.cast_to_stored(y)
