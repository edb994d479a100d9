"""Multi-head self-attention whose input and output widths may differ."""

from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.Module):
    """Computes multi-head self-attention at width `chan`, and adds the values to the projected result.

    The value skip stands in for the residual connection that is impossible where dim != chan; the series keeps it in
    every block, also where the widths agree and the block has its own residual.

    Args:
        dim: length of an input token.
        chan: length of an output token, and the width of q, k and v.
        num_heads: number of heads.
        qkv_bias: whether the q, k, v projection has a bias.
        qk_scale: factor on q; None (or 0) means head_dim ** -0.5.

    Raises:
        ValueError: if chan is not a multiple of num_heads.

    Reference: arXiv 1706.03762; the value skip is T2T-ViT's, arXiv 2101.11986.
    """

    def __init__(self, dim: int, chan: int, num_heads: int = 1, qkv_bias: bool = False, qk_scale: float | None = None):
        super().__init__()
        if num_heads < 1 or chan % num_heads:
            raise ValueError(f"the attention width {chan} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.chan = chan
        self.head_dim = chan // num_heads
        self.scale = qk_scale or self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * chan, bias=qkv_bias)
        self.proj = nn.Linear(chan, chan)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n chan"]:
        """Attends each token to all tokens."""
        batch, tokens, _ = x.shape
        # (b, n, 3*chan) -> three of (b, heads, n, head_dim)
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        # (b, heads, n, head_dim) -> (b, n, chan)
        attended = (weights @ v).transpose(1, 2).reshape(batch, tokens, self.chan)
        merged_values = v.transpose(1, 2).reshape(batch, tokens, self.chan)
        return self.proj(attended) + merged_values
