"""Normalisation over the last axis: LayerNorm and RMSNorm as torch computes them."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.models.placed import custom_vjp
from vit_flax.models.precision import Precision, accumulator_dtype, recomputed


@partial(custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """Centres and scales the last axis, statistics in float32 or wider.

    The variance is the mean of squared deviations: E[x^2] - E[x]^2, the fast form of flax.linen.LayerNorm, loses the
    digits of activations with a large mean. The backward pass is written out so that it reads `x` once and XLA:CPU does
    not fold the whole chain of residual gradients into each of its consumers.
    """
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _standardise(x: Array, eps: float) -> tuple[Array, Array]:
    x = x.astype(accumulator_dtype(x.dtype))
    centred = x - x.mean(-1, keepdims=True)
    rstd = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return centred * rstd, rstd


def _layer_norm_forward(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, tuple[Array, Array, Array]]:
    normed, _ = _standardise(x, eps)
    return normed * scale + bias, (x, scale, bias)


def _layer_norm_backward(eps: float, residuals: tuple[Array, Array, Array], g: Array) -> tuple[Array, Array, Array]:
    x, scale, bias = residuals
    normed, rstd = _standardise(x, eps)
    leading = tuple(range(x.ndim - 1))
    dnormed = g * scale
    dx = rstd * (dnormed - dnormed.mean(-1, keepdims=True) - normed * (dnormed * normed).mean(-1, keepdims=True))
    return dx.astype(x.dtype), (g * normed).sum(leading).astype(scale.dtype), g.sum(leading).astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """Centres the last axis, scales it to unit variance, then applies a learned gain and shift.

    Reference: torch.nn.LayerNorm(d, eps).
    """

    eps: float | None = 1e-6
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Returns the normalised `x`, in the dtype that is stored."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.precision.params)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.precision.params)
        return self.precision.cast_to_stored(layer_norm(x, scale, bias, _epsilon(self.eps, x.dtype)))


class RMSNorm(nn.Module):
    """Divides the last axis by its root mean square, then applies a learned gain.

    Reference: torch.nn.RMSNorm(d, eps); eps None is the machine epsilon of the input's dtype there too.
    """

    eps: float | None = None
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Returns the normalised `x`, in the dtype that is stored."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.precision.params)
        eps = _epsilon(self.eps, x.dtype)

        def rms_norm(x: Array, scale: Array) -> Array:
            return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps) * scale

        if self.precision.stored == x.dtype:
            return recomputed(rms_norm, x, scale)
        return self.precision.cast_to_stored(rms_norm(x.astype(accumulator_dtype(x.dtype)), scale))


NORM_LAYERS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def _epsilon(eps: float | None, dtype: DTypeLike) -> float:
    return float(jnp.finfo(dtype).eps) if eps is None else eps
