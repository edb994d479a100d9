"""The two-layer network inside every block."""

from collections.abc import Callable
from numbers import Integral

from jaxtyping import Float
from torch import Tensor, nn


class NeuralNet(nn.Module):
    """Applies Linear, activation, Linear to every token.

    Args:
        in_chan: length of an input token.
        hidden_chan: width between the layers; None means in_chan.
        out_chan: length of an output token; None means in_chan.
        act_layer: class of an elementwise activation, called without arguments.

    Raises:
        ValueError: if the hidden width is not a positive integer (a float such as 96.0 is refused).
    """

    def __init__(
        self,
        in_chan: int,
        hidden_chan: int | None = None,
        out_chan: int | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
    ):
        super().__init__()
        hidden_chan = in_chan if hidden_chan is None else hidden_chan
        out_chan = in_chan if out_chan is None else out_chan
        if not isinstance(hidden_chan, Integral) or hidden_chan < 1:
            raise ValueError(f"the hidden width must be a positive integer, not {hidden_chan!r}")
        self.fc1 = nn.Linear(in_chan, hidden_chan)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_chan, out_chan)

    def forward(self, x: Float[Tensor, "b n in_chan"]) -> Float[Tensor, "b n out_chan"]:
        """Applies the two layers."""
        return self.fc2(self.act(self.fc1(x)))
