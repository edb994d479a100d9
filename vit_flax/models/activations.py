"""Elementwise activations as torch defines them, gradients at the kinks included.

Names are torch.nn's classes in lower case; each is that class with its default arguments. `rrelu` is the form torch
evaluates with (a fixed slope): in training torch draws the slope at random, which no two frameworks can agree on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from vit_flax.models.precision import accumulator_dtype, recomputed

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """Multiplies by the normal distribution's cumulative function (erf form, torch's default)."""
    return x * _normal_cdf(x)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    cdf = _normal_cdf(x)
    density = jnp.exp(-0.5 * x * x) * (0.5 * jnp.sqrt(jnp.asarray(2 / jnp.pi, x.dtype)))
    return x * cdf, dx * (cdf + x * density)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + lax.erf(x * jnp.sqrt(jnp.asarray(0.5, x.dtype))))


def gelu_tanh(x: Array) -> Array:
    """Approximates GELU through tanh (torch's approximate='tanh', JAX's default)."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: Array) -> Array:
    """Approximates GELU through a sigmoid (OpenAI CLIP)."""
    return x * jax.nn.sigmoid(1.702 * x)


def softplus(x: Array) -> Array:
    """Smooths relu; the identity above 20, as torch's threshold has it."""
    return jnp.where(x > 20, x, jnp.log1p(jnp.exp(jnp.where(x > 20, 0, x))))


def _between(x: Array, low: float, high: float) -> Array:
    # torch's clamp-like activations pass no gradient at the two ends
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x)).astype(x.dtype)


# torch's backward of hardsigmoid multiplies by 1/6 rounded to float32, in float64 too (ActivationHardsigmoidKernel)
HARDSIGMOID_SLOPE = 0.16666667163372040


@jax.custom_jvp
def hardsigmoid(x: Array) -> Array:
    """Clips x / 6 + 1 / 2 to [0, 1]; its gradient carries torch's rounding of 1/6."""
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, x / 6 + 0.5)).astype(x.dtype)


@hardsigmoid.defjvp
def _hardsigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return hardsigmoid(x), jnp.where((x > -3) & (x < 3), dx * HARDSIGMOID_SLOPE, 0).astype(x.dtype)


def _hardswish(x: Array) -> Array:
    # 0 * x instead of 0: torch makes NaN of minus infinity
    return jnp.where(x <= -3, 0 * x, jnp.where(x >= 3, x, x * (x + 3) / 6))


def _elu(x: Array, alpha: float = 1.0) -> Array:
    return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0, x)))


def _leaky(slope: float) -> Callable[[Array], Array]:
    return lambda x: jnp.where(x > 0, x, slope * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "celu": _elu,
    "elu": _elu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "hardshrink": lambda x: jnp.where((x >= -0.5) & (x <= 0.5), 0, x).astype(x.dtype),
    "hardsigmoid": hardsigmoid,
    "hardswish": _hardswish,
    "hardtanh": lambda x: _between(x, -1.0, 1.0),
    "identity": lambda x: x,
    "leakyrelu": _leaky(0.01),
    "logsigmoid": jax.nn.log_sigmoid,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "relu6": lambda x: _between(x, 0.0, 6.0),
    "rrelu": _leaky((1 / 8 + 1 / 3) / 2),
    "selu": lambda x: SELU_SCALE * _elu(x, SELU_ALPHA),
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": softplus,
    "softshrink": lambda x: jnp.where(x > 0.5, x - 0.5, jnp.where(x < -0.5, x + 0.5, 0 * x)),
    "softsign": lambda x: x / (1 + jnp.abs(x)),
    "tanh": jnp.tanh,
    "tanhshrink": lambda x: x - jnp.tanh(x),
}


def get_activation(name: str) -> Callable[[Array], Array]:
    """Returns the activation of that name; what is narrower than float32 is computed in float32.

    Raises:
        ValueError: the name is unknown; the message lists those that are.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(sorted(ACTIVATIONS))}")
    function = ACTIVATIONS[name]
    return lambda x: function(x) if x.dtype == accumulator_dtype(x.dtype) else recomputed(function, x)
