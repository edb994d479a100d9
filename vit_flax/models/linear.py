"""A linear layer that names its products, forward and backward."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.models.fence import fence
from vit_flax.models.placed import custom_vjp, explicit_sharding
from vit_flax.models.precision import Precision, accumulator_dtype


def contract(
    a: Array, b: Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...], precision: Any, out_sharding: Any = None
) -> Array:
    """Sums the product of `a` and `b` over the named axes, accumulating in float32 or wider."""
    dims, wide = ((a_axes, b_axes), ((), ())), accumulator_dtype(a.dtype)
    return lax.dot_general(a, b, dims, precision, preferred_element_type=wide, out_sharding=out_sharding)


@partial(custom_vjp, nondiff_argnums=(2, 3))
def matmul(x: Array, kernel: Array, dtype: DTypeLike, precision: Any) -> Array:
    """Multiplies the last axis of `x` with a (in, out ...) kernel; operands in `dtype`, the sum in float32 or wider.

    The backward pass is written out because the transposed products that differentiation derives are slower on every
    backend (they copy an operand), and in bfloat16 one of them does not run on the CPU at all. Reverse-mode and
    forward-over-reverse differentiation work; plain forward mode (jax.jvp) does not.
    """
    return contract(x.astype(dtype), kernel.astype(dtype), (x.ndim - 1,), (0,), precision)


def _matmul_forward(x: Array, kernel: Array, dtype: DTypeLike, precision: Any) -> tuple[Array, Any]:
    operand = fence(x.astype(dtype))
    y = contract(operand, kernel.astype(dtype), (x.ndim - 1,), (0,), precision)
    return y, (operand, kernel, jnp.zeros(0, x.dtype))  # an empty array remembers the dtype that dx must have


def _matmul_backward(dtype: DTypeLike, precision: Any, residuals: Any, g: Array) -> tuple[Array, Array]:
    operand, kernel, like_x = residuals
    g = fence(g.astype(dtype))
    leading, out = tuple(range(operand.ndim - 1)), tuple(range(operand.ndim - 1, g.ndim))
    lies = explicit_sharding(operand), explicit_sharding(kernel)  # gradients lie where their values do
    dx = contract(g, kernel.astype(dtype), out, tuple(range(1, kernel.ndim)), precision, lies[0])
    dkernel = contract(operand, g, leading, leading, precision, lies[1])  # operands stay (batch, tokens, width)
    return dx.astype(like_x.dtype), dkernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nn.Module):
    """Multiplies the last axis with a kernel and adds a bias.

    The result is of the dtype that `precision` stores: float32 or wider, unless it says another.

    Reference: torch.nn.Linear, kernel = weight.T; initialised as the reference's (normal, std 0.02; bias 0).
    """

    features: int
    use_bias: bool = True
    precision: Precision = Precision()

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... e"]:
        """Returns `x @ kernel + bias`."""
        kernel, bias = self._parameters(x)
        return self._apply(x, kernel, bias)

    def parts(self, x: Float[Array, "... d"], count: int) -> list[Float[Array, "... e"]]:
        """Returns the result in `count` parts, each a product of its own: parts of one would have to be copied out."""
        kernel, bias = self._parameters(x)
        kernels = jnp.split(kernel, count, axis=-1)
        biases = [None] * count if bias is None else jnp.split(bias, count)
        return [self._apply(x, *part) for part in zip(kernels, biases, strict=True)]

    @nn.compact
    def _parameters(self, x: Array) -> tuple[Array, Array | None]:
        params = self.precision.params
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features), params)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), params) if self.use_bias else None

    def _apply(self, x: Array, kernel: Array, bias: Array | None) -> Array:
        y: Any = matmul(x, kernel, self.precision.operand_dtype(x, kernel), self.precision.products)
        return self.precision.keep(y if bias is None else y + bias)
