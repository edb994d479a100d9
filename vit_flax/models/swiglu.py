"""The gated perceptron of a block."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.models.activations import get_activation
from vit_flax.models.drop import dropout, is_dropping
from vit_flax.models.linear import Linear
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.precision import Precision, recomputed


class SwiGLU(nn.Module):
    """The gated MLP: a linear projection of activated gates times values.

    One layer makes both: the first half of `fc1`'s output is the gate, the second the value.

    Reference: timm.layers.SwiGLUPacked and SwiGLU; DINOv2's SwiGLUFFN; arXiv 2002.05202.
    """

    hidden_features: int  # width of the product: fc1 is twice as wide
    activation: str = "silu"
    use_bias: bool = True
    norm_layer: str | None = None  # normalises the product
    norm_eps: float | None = 1e-6
    precision: Precision = Precision()
    drop: float = 0.0  # after the activation and after the last layer

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Returns the transformed tokens."""
        linear = partial(Linear, use_bias=self.use_bias, precision=self.precision)
        hidden = linear(2 * self.hidden_features, name="fc1")(x)
        product = dropout(self, self._gated(hidden), self.drop)
        if self.norm_layer is not None:
            product = NORM_LAYERS[self.norm_layer](self.norm_eps, self.precision, name="norm")(product)
        source = None if self.norm_layer or is_dropping(self, self.drop) else (self._gated, hidden)
        return dropout(self, linear(x.shape[-1], name="fc2")(product, source=source), self.drop)

    @nn.nowrap
    def _gated(self, hidden: Array) -> Array:
        gate, value = jnp.split(hidden, 2, axis=-1)
        activation = get_activation(self.activation)

        def product(gate: Array, value: Array) -> Array:
            return activation(gate) * value

        return product(gate, value) if self.precision.stored is None else recomputed(product, gate, value)
