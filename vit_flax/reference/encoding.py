"""The encoder block of the ViT."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from vit_flax.reference.attention import Attention
from vit_flax.reference.neural_net import NeuralNet


class Encoding(nn.Module):
    """Computes x + attn(norm1(x)), then x + neuralnet(norm2(x)).

    Args:
        dim: length of a token, in and out.
        num_heads: number of attention heads.
        hidden_chan_mul: hidden width of the network as a multiple of dim, rounded down.
        qkv_bias: whether the q, k, v projection has a bias.
        qk_scale: factor on q; None means head_dim ** -0.5.
        act_layer: class of an elementwise activation, called without arguments.
        norm_layer: nn.LayerNorm or nn.RMSNorm, called with dim.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        hidden_chan_mul: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, chan=dim, num_heads=num_heads, qkv_bias=qkv_bias, qk_scale=qk_scale)
        self.norm2 = norm_layer(dim)
        self.neuralnet = NeuralNet(dim, hidden_chan=int(dim * hidden_chan_mul), out_chan=dim, act_layer=act_layer)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Applies the block."""
        x = x + self.attn(self.norm1(x))
        return x + self.neuralnet(self.norm2(x))
