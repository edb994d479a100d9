"""The Vision Transformer of BEiT: what a token sees of another depends on where both are in the grid."""

from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from vit_flax.config import BeitConfig
from vit_flax.models.attention import dot_product_attention
from vit_flax.models.block import Block
from vit_flax.models.drop import refuse_drops
from vit_flax.models.linear import Linear
from vit_flax.models.precision import Precision
from vit_flax.models.qkv import project_qkv
from vit_flax.models.vision_transformer import VisionTransformer


def relative_positions(grid_size: tuple[int, int]) -> np.ndarray:
    """Returns which row of a table belongs to every query (first axis) and key, the class token being first.

    The rows are those of the (2 H - 1) x (2 W - 1) steps from key to query, then three: class token to patch, patch to
    class token, class token to itself.

    Reference: timm.models.beit.gen_relative_position_index.
    """
    height, width = grid_size
    rows, columns = (axis.reshape(-1) for axis in np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    down, right = (axis[:, None] - axis for axis in (rows, columns))
    last = relative_rows(grid_size) - 1
    index = np.full((height * width + 1,) * 2, last)
    index[1:, 1:] = (down + height - 1) * (2 * width - 1) + right + width - 1
    index[0, 1:], index[1:, 0] = last - 2, last - 1
    return index


def relative_rows(grid_size: tuple[int, int]) -> int:
    """Returns how many rows a table has."""
    return (2 * grid_size[0] - 1) * (2 * grid_size[1] - 1) + 3


class RelativePositionBias(nn.Module):
    """Looks up what is added to the logits of every head, query and key.

    Reference: timm.models.beit.RelativePositionBias; transformers' BeitRelativePositionBias.
    """

    grid_size: tuple[int, int]
    num_heads: int
    precision: Precision = Precision()

    @nn.compact
    def __call__(self) -> Float[Array, "1 h n n"]:
        """Returns the biases."""
        shape = (relative_rows(self.grid_size), self.num_heads)
        table = self.param("relative_position_bias_table", nn.initializers.zeros, shape, self.precision.params)
        return table[relative_positions(self.grid_size)].transpose(2, 0, 1)[None]


class BeitAttention(nn.Module):
    """Lets every token gather from every other, more or less by their places; keys have no bias of their own.

    Reference: timm.models.beit.Attention; transformers' BeitAttention.
    """

    config: BeitConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], shared: Any = None) -> Float[Array, "b n d"]:
        """Returns the attended tokens; `shared` is added to the logits beside what this block's own table says."""
        cfg = self.config
        batch, tokens, dim = x.shape
        qkv = project_qkv(self, x, cfg.qkv_bias, False, self.precision)
        # (B, N, 3 H E) -> (3, B, H, N, E)
        heads = qkv.reshape(batch, tokens, 3, cfg.num_heads, cfg.head_dim).transpose(2, 0, 3, 1, 4)
        q, k, v = heads.astype(self.precision.operand_dtype(qkv))
        bias = shared
        if cfg.rel_pos_bias:
            own = RelativePositionBias(cfg.grid_size, cfg.num_heads, self.precision, name="rel_pos_bias")()
            bias = own if shared is None else own + shared
        out: Any = dot_product_attention(q, k, v, cfg.qk_scale or cfg.head_dim**-0.5, self.precision, bias)
        return Linear(dim, True, self.precision, name="proj")(out.transpose(0, 2, 1, 3).reshape(batch, tokens, dim))


class BeitBlock(Block):
    """A block with `BeitAttention`."""

    config: BeitConfig

    def setup_attention(self) -> None:
        """Builds the attention."""
        refuse_drops("beit", self.drop, "attn_drop_rate", "proj_drop_rate")
        self.attn = BeitAttention(self.config, self.precision)


class Beit(VisionTransformer):
    """A Vision Transformer with `BeitBlock`.

    Reference: timm.models.beit.Beit; transformers' BeitModel; arXiv 2106.08254.
    """

    config: BeitConfig

    def setup_backbone(self) -> None:
        """Builds everything after the tokens."""
        cfg = self.config
        if cfg.shared_rel_pos_bias:
            self.rel_pos_bias = RelativePositionBias(cfg.grid_size, cfg.num_heads, self.policy)
        super().setup_backbone()

    def make_block(self, index: int) -> nn.Module:
        """Returns a block; all are alike but for the share of them that training leaves out."""
        rates = self.drop.block_rates(self.config.depth)
        return BeitBlock(self.config, self.policy, self.drop, rates[index])

    def block_inputs(self) -> list[tuple[Any, ...]]:
        """Returns the biases that the blocks share, if they share any."""
        if not self.config.shared_rel_pos_bias:
            return super().block_inputs()
        return [(self.rel_pos_bias(),)] * self.config.depth
