"""Learned gains of the residual branches."""

import flax.linen as nn
from jaxtyping import Array, Float

from vit_flax.models.precision import Precision


class LayerScale(nn.Module):
    """Multiplies every channel by a learned gain.

    Reference: timm.layers.LayerScale; arXiv 2103.17239. `init_value` only sets the first value of the parameter.
    """

    init_value: float
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns `x * gamma`."""
        return x * self.param("gamma", nn.initializers.constant(self.init_value), x.shape[-1:], self.precision.params)
