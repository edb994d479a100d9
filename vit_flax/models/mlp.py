"""The two-layer perceptron of a block."""

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from vit_flax.models.activations import get_activation
from vit_flax.models.drop import dropout, is_dropping
from vit_flax.models.linear import Linear
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.precision import Precision


class Mlp(nn.Module):
    """Applies linear, activation, linear to every token; `norm_layer` normalises between the last two.

    Raises:
        ValueError: a width is not a positive integer, or the activation is unknown.

    Reference: the tutorial's NeuralNet(in_chan, hidden_chan, out_chan, act_layer); timm.layers.Mlp.
    """

    hidden_features: int | None = None  # None: as wide as the input
    out_features: int | None = None  # None: as wide as the input
    activation: str = "gelu"
    use_bias: bool = True
    norm_layer: str | None = None
    norm_eps: float | None = 1e-6
    precision: Precision = Precision()
    drop: float = 0.0  # after the activation and after the last layer

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... e"]:
        """Returns the transformed tokens, `out_features` wide."""
        width, out = self.hidden_features or x.shape[-1], self.out_features or x.shape[-1]
        for name, value in (("hidden_features", width), ("out_features", out)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        linear = partial(Linear, use_bias=self.use_bias, precision=self.precision)
        activation = get_activation(self.activation)
        hidden = linear(width, name="fc1")(x)
        x = dropout(self, activation(hidden), self.drop)
        if self.norm_layer is not None:
            x = NORM_LAYERS[self.norm_layer](self.norm_eps, self.precision, name="norm")(x)
        source = None if self.norm_layer or is_dropping(self, self.drop) else (activation, hidden)
        return dropout(self, linear(out, name="fc2")(x, source=source), self.drop)
