"""The Vision Transformer of EVA and DINOv3: positions are rotations of the patches' queries and keys."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_flax.config import RopeViTConfig
from vit_flax.models.attention import dot_product_attention
from vit_flax.models.block import Block
from vit_flax.models.drop import refuse_drops
from vit_flax.models.linear import Linear
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.precision import Precision, accumulator_dtype
from vit_flax.models.qkv import project_qkv
from vit_flax.models.res_post_block import ResPostBlock
from vit_flax.models.vision_transformer import VisionTransformer


def rotary_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """Computes theta^(-j / n) for the n = head_dim / 4 channels of an axis, each step rounded to float32.

    The power is rounded from float64, so correctly. So is torch's for heads of width 64 and 128 at every theta in use;
    for other widths torch's last bit differs between processors, and between its `arange` and a quotient.

    Reference: `inv_freq` of transformers' DINOv3ViTRopePositionEmbedding, timm.layers.pos_embed_sincos.freq_bands.
    """
    count = head_dim // 4
    exponents = np.arange(count, dtype=np.float32) / np.float32(count)
    return np.float32(1) / np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)


def rotary_axes(cfg: RopeViTConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns for every patch what its two coordinates are multiplied by frequencies as, rounded to float32.

    'dinov3': 2 pi times the patch centre's place in -1..1; else the patch's number in its row or column, counted from
    `rope_grid_offset` and stretched so that the grid has the size of `rope_ref_grid`.
    """
    sides = cfg.grid_size
    if cfg.rope_type == "dinov3":
        places = [2 * (np.arange(0.5, side, dtype=np.float32) / np.float32(side)) - 1 for side in sides]
        axes = [np.float32(2 * np.pi) * place for place in places]
    else:
        axes = [np.arange(side, dtype=np.float32) + np.float32(cfg.rope_grid_offset) for side in sides]
        if cfg.rope_ref_grid is not None:
            stretched = zip(axes, sides, cfg.rope_ref_grid, strict=True)
            axes = [axis / np.float32(side) * np.float32(ref) for axis, side, ref in stretched]
    rows, columns = (axis.reshape(-1).astype(np.float64) for axis in np.meshgrid(*axes, indexing="ij"))
    return (columns, rows) if cfg.rope_grid_indexing == "xy" else (rows, columns)


def rotary_angles(cfg: RopeViTConfig) -> np.ndarray:
    """Computes the angle of every patch and pair of channels, shape (H W, head_dim / 2), in float64.

    A quarter of the head's channels follows the row and one the column, or the other way round for 'xy'.

    Reference: transformers' DINOv3ViTRopePositionEmbedding; timm's RotaryEmbeddingDinoV3 and RotaryEmbeddingCat.
    """
    frequencies = rotary_frequencies(cfg.head_dim, cfg.rope_theta).astype(np.float64)
    return np.concatenate([axis[:, None] * frequencies for axis in rotary_axes(cfg)], axis=1)


def mixed_angles(cfg: RopeViTConfig, freqs: Float[Array, "2 l h f"]) -> Float[Array, "l h p f"]:
    """Computes the angles of learned frequencies, of every block and head.

    Reference: timm's RotaryEmbeddingMixed; arXiv 2403.13298.
    """
    dtype = jnp.promote_types(freqs.dtype, jnp.float32)
    first, second = (jnp.asarray(axis, dtype)[:, None] for axis in rotary_axes(cfg))
    freqs = freqs.astype(dtype)[:, :, :, None]
    return first * freqs[0] + second * freqs[1]


def rotate(x: Float[Array, "b h p e"], angles: Any, half: bool) -> Float[Array, "b h p e"]:
    """Turns pairs of channels by their angle: j with j + e/2 if `half`, else 2 j with 2 j + 1."""
    numpy = np if isinstance(angles, np.ndarray) else jnp
    angles = numpy.concatenate([angles, angles], axis=-1) if half else numpy.repeat(angles, 2, axis=-1)
    cos, sin = (jnp.asarray(table, x.dtype) for table in (numpy.cos(angles), numpy.sin(angles)))
    if half:
        first, second = jnp.split(x, 2, axis=-1)
        turned = jnp.concatenate([-second, first], axis=-1)
    else:
        turned = jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
    return x * cos + turned * sin


def _turned(x: Float[Array, "b h n e"], prefix: int, angles: Any, half: bool) -> Float[Array, "b h n e"]:
    # in float32 or wider: sine and cosine of far patches have no digits to lose
    wide = x.astype(accumulator_dtype(x.dtype))
    return jnp.concatenate([wide[:, :, :prefix], rotate(wide[:, :, prefix:], angles, half)], axis=2)


class RopeAttention(nn.Module):
    """Lets every token gather from every other; the queries and keys of patches are rotated, of prefix tokens not.

    Reference: transformers' DINOv3ViTAttention; timm's EvaAttention and AttentionRope.
    """

    config: RopeViTConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], angles: Any = None) -> Float[Array, "b n d"]:
        """Returns the attended tokens; angles ([H,] P, E/2) None: nothing is rotated."""
        cfg = self.config
        batch, tokens, dim = x.shape
        qkv = project_qkv(self, x, cfg.qkv_bias, cfg.key_bias, self.precision)
        # (B, N, 3 H E) -> (3, B, H, N, E)
        q, k, v = qkv.reshape(batch, tokens, 3, cfg.num_heads, cfg.head_dim).transpose(2, 0, 3, 1, 4)
        if angles is not None:
            prefix, half = cfg.num_prefix_tokens, cfg.rope_rotate_half
            q, k = (_turned(part, prefix, angles, half) for part in (q, k))
        q, k, v = (part.astype(self.precision.operand_dtype(qkv)) for part in (q, k, v))
        out: Any = dot_product_attention(q, k, v, cfg.qk_scale or cfg.head_dim**-0.5, self.precision)
        out = out.transpose(0, 2, 1, 3).reshape(batch, tokens, dim)
        if cfg.scale_attn_norm:
            out = NORM_LAYERS[cfg.norm_layer](cfg.norm_eps, self.precision, name="norm")(out)
        return Linear(dim, cfg.proj_bias, self.precision, name="proj")(out)


class RopeBlock(Block):
    """A block with `RopeAttention`."""

    config: RopeViTConfig

    def setup_attention(self) -> None:
        """Builds the attention."""
        refuse_drops("rope", self.drop, "attn_drop_rate", "proj_drop_rate")
        self.attn = RopeAttention(self.config, self.precision)


class RopeResPostBlock(RopeBlock, ResPostBlock):
    """A block that normalises last, with `RopeAttention`.

    Reference: timm's EvaBlockPostNorm.
    """

    config: RopeViTConfig


class RopeViT(VisionTransformer):
    """A Vision Transformer with `RopeBlock`.

    Reference: transformers' DINOv3ViTModel, arXiv 2508.10104; timm's Eva.
    """

    config: RopeViTConfig

    def setup_backbone(self) -> None:
        """Builds everything after the tokens."""
        cfg = self.config
        if cfg.rope_type == "mixed":
            shape = (2, cfg.depth, cfg.num_heads, cfg.head_dim // 2)
            self.rope_freqs = self.param("rope_freqs", self._init_freqs, shape)
        super().setup_backbone()

    def _init_freqs(self, key: Array, shape: tuple[int, ...]) -> Array:
        # every head of every block begins with axes turned by an angle of its own
        magnitude = rotary_frequencies(self.config.head_dim, self.config.rope_theta)
        turn = nn.initializers.uniform(2 * np.pi)(key, (*shape[1:3], 1), self.policy.params)
        both = jnp.concatenate([turn, turn + np.pi / 2], axis=-1)[..., None]
        freqs = jnp.stack([jnp.cos(both), jnp.sin(both)]) * jnp.asarray(magnitude, self.policy.params)
        return freqs.reshape(shape)

    def make_block(self, index: int) -> nn.Module:
        """Returns a block; all are alike but for the share of them that training leaves out."""
        kind = RopeBlock if self.config.block == "standard" else RopeResPostBlock
        rates = self.drop.block_rates(self.config.depth)
        return kind(self.config, self.policy, self.drop, rates[index])

    def block_inputs(self) -> list[tuple[Any, ...]]:
        """Returns the angles of every block."""
        cfg = self.config
        if cfg.rope_type == "mixed":
            return [(angles,) for angles in mixed_angles(cfg, self.rope_freqs)]
        return super().block_inputs() if cfg.rope_type == "none" else [(rotary_angles(cfg),)] * cfg.depth
