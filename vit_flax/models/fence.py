"""A fusion barrier for XLA:CPU, which makes it compute a value once instead of again in each consumer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from vit_flax.models.precision import target


def fence(x: Array) -> Array:
    """Returns `x`, materialised once on the CPU; elsewhere it is no operation.

    XLA:CPU fuses an elementwise producer into every consumer, also into the transposed copies that feed the gradients
    of kernels, where it is then computed in strided order. A conditional is the one thing it does not fuse through.
    Its predicate must not be a constant to the compiler, yet true for all values, infinities and NaN included: it
    looks at one bit of the first number, whose value is below two. With several CPU devices that number would have to
    travel between them, so there is no fence then: `compiled_for` says so.
    """
    if target().devices > 1 or jax.typeof(x).sharding.mesh.size > 1:
        return x
    return lax.platform_dependent(x, cpu=_stored, default=lambda x: x)


def _stored(x: Array) -> Array:
    first = x[(0,) * x.ndim]
    bits = lax.bitcast_convert_type(first, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return lax.cond((bits & 1) < 2, lambda x: x, lambda x: -x, x)
