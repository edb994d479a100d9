"""Learned gains of the residual branches."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class LayerScale(nn.Module):
    """Multiplies every channel by a learned gain.

    Reference: timm.layers.LayerScale; arXiv 2103.17239. `init_value` only sets the first value of the parameter.
    """

    init_value: float
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns `x * gamma`."""
        return x * self.param("gamma", nn.initializers.constant(self.init_value), x.shape[-1:], self.param_dtype)
