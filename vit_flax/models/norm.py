"""Normalisation over the last axis: LayerNorm and RMSNorm as torch computes them."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.models.placed import custom_vjp
from vit_flax.models.precision import Precision, accumulator_dtype, recomputed

Statistics = tuple[Array, Array]  # mean, and one over the standard deviation


@partial(custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x: Array, scale: Array, bias: Array, eps: float, keep_statistics: bool) -> Array:
    """Centres and scales the last axis, statistics in float32 or wider.

    The variance is the mean of squared deviations: E[x^2] - E[x]^2, the fast form of flax.linen.LayerNorm, loses the
    digits of activations with a large mean. The backward pass is written out so that XLA:CPU does not fold the whole
    chain of residual gradients into each of its consumers. With `keep_statistics` it reads `x` once; otherwise it
    computes them again, which is faster on a CPU.
    """
    return _layer_norm_forward(x, scale, bias, eps, keep_statistics)[0]


def _standardise(x: Array, eps: float, statistics: Statistics | None = None) -> tuple[Array, Statistics]:
    x = x.astype(accumulator_dtype(x.dtype))
    mean = x.mean(-1, keepdims=True) if statistics is None else statistics[0]
    centred = x - mean
    rstd = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps) if statistics is None else statistics[1]
    return centred * rstd, (mean, rstd)


def _layer_norm_forward(x: Array, scale: Array, bias: Array, eps: float, keep_statistics: bool) -> tuple[Array, Any]:
    normed, statistics = _standardise(x, eps)
    return normed * scale + bias, (x, scale, bias, statistics if keep_statistics else None)


def _layer_norm_backward(
    eps: float, keep_statistics: bool, residuals: tuple[Array, Array, Array, Statistics | None], g: Array
) -> tuple[Array, Array, Array]:
    del keep_statistics
    x, scale, bias, statistics = residuals
    normed, (_, rstd) = _standardise(x, eps, statistics)
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
        keep_statistics = self.precision.stored is not None
        return self.precision.cast_to_stored(layer_norm(x, scale, bias, _epsilon(self.eps, x.dtype), keep_statistics))


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

        stored = self.precision.stored
        if stored is not None and jnp.promote_types(x.dtype, stored) == x.dtype:  # the stream is no narrower
            return self.precision.cast_to_stored(recomputed(rms_norm, x, scale))
        return self.precision.cast_to_stored(rms_norm(x.astype(accumulator_dtype(x.dtype)), scale))


NORM_LAYERS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def _epsilon(eps: float | None, dtype: DTypeLike) -> float:
    return float(jnp.finfo(dtype).eps) if eps is None else eps
