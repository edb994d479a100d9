"""Learned gains of the residual branches."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.models.precision import Precision, recomputed


class LayerScale(nn.Module):
    """Multiplies every channel by a learned gain.

    Reference: timm.layers.LayerScale; arXiv 2103.17239. `init_value` only sets the first value of the parameter.
    """

    init_value: float
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns `x * gamma`."""
        gamma = self.param("gamma", nn.initializers.constant(self.init_value), x.shape[-1:], self.precision.params)
        return x * gamma if self.precision.stored is None else recomputed(jnp.multiply, x, gamma)
