"""The Vision Transformer of DINOv3: positions are rotations of the patches' queries and keys."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.config import RopeViTConfig
from vit_flax.models.attention import dot_product_attention
from vit_flax.models.block import Block
from vit_flax.models.drop import refuse_drops
from vit_flax.models.linear import PRECISION, Linear
from vit_flax.models.vision_transformer import VisionTransformer


def rotary_angles(grid_size: tuple[int, int], head_dim: int, theta: float) -> np.ndarray:
    """Computes the angle of every patch and channel, shape (H W, head_dim), in float64.

    The centre of a patch is at (row, column) in -1..1; coordinate c turns channel j of n by 2 pi c / theta^(j / n). A
    quarter of the channels follows the row, one the column, and the second half repeats the first. 2 pi c and
    theta^(-j / n) are rounded to float32, as the reference has them in every precision.

    Reference: transformers' DINOv3ViTRopePositionEmbedding.
    """
    coordinates = [2 * (np.arange(0.5, side, dtype=np.float32) / np.float32(side)) - 1 for side in grid_size]
    exponents = np.arange(0, 1, 4 / head_dim, dtype=np.float32)
    frequencies = (1 / np.float32(theta) ** exponents).astype(np.float64)
    turns = [(np.float32(2 * np.pi) * axis).astype(np.float64) for axis in coordinates]
    rows, columns = np.meshgrid(*turns, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (rows, columns)]
    return np.tile(np.concatenate(angles, axis=1), 2)


def rotate(x: Float[Array, "b h p e"], angles: np.ndarray) -> Float[Array, "b h p e"]:
    """Turns channel j together with channel j + e/2 by their angle."""
    cos, sin = jnp.asarray(np.cos(angles), x.dtype), jnp.asarray(np.sin(angles), x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


class RopeAttention(nn.Module):
    """Lets every token gather from every other; the queries and keys of patches are rotated, of prefix tokens not.

    Biases are parameters of this module, as keys may have none where queries and values do.

    Reference: transformers' DINOv3ViTAttention.
    """

    config: RopeViTConfig
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Any = PRECISION

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns the attended tokens."""
        cfg = self.config
        batch, tokens, dim = x.shape
        runtime = (self.dtype, self.param_dtype, self.precision)
        qkv = Linear(3 * dim, False, *runtime, name="qkv")(x)
        biases = {"q_bias": cfg.qkv_bias, "k_bias": cfg.key_bias, "v_bias": cfg.qkv_bias}
        if any(biases.values()):
            parts = [
                self.param(name, nn.initializers.zeros, (dim,), self.param_dtype)
                if there
                else jnp.zeros((dim,), self.param_dtype)
                for name, there in biases.items()
            ]
            qkv = qkv + jnp.concatenate(parts)
        # (B, N, 3 H E) -> (3, B, H, N, E)
        heads = qkv.reshape(batch, tokens, 3, cfg.num_heads, cfg.head_dim).transpose(2, 0, 3, 1, 4)
        compute_dtype = self.dtype or qkv.dtype
        angles = rotary_angles(cfg.grid_size, cfg.head_dim, cfg.rope_theta)
        prefix = cfg.num_prefix_tokens
        q, k = (
            jnp.concatenate([part[:, :, :prefix], rotate(part[:, :, prefix:], angles)], axis=2).astype(compute_dtype)
            for part in (heads[0], heads[1])
        )
        scale = cfg.qk_scale or cfg.head_dim**-0.5
        out: Any = dot_product_attention(q, k, heads[2].astype(compute_dtype), scale, self.precision)
        return Linear(dim, cfg.proj_bias, *runtime, name="proj")(out.transpose(0, 2, 1, 3).reshape(batch, tokens, dim))


class RopeBlock(Block):
    """A block with `RopeAttention`."""

    config: RopeViTConfig

    def setup_attention(self) -> None:
        """Builds the attention."""
        refuse_drops("rope", self.drop, "attn_drop_rate", "proj_drop_rate")
        self.attn = RopeAttention(self.config, self.dtype, self.param_dtype, self.precision)


class RopeViT(VisionTransformer):
    """A Vision Transformer with `RopeBlock`.

    Reference: transformers' DINOv3ViTModel; arXiv 2508.10104.
    """

    config: RopeViTConfig

    def make_block(self, index: int) -> nn.Module:
        """Returns a block; all are alike but for the share of them that training leaves out."""
        rates = self.drop.block_rates(self.config.depth)
        return RopeBlock(self.config, self.dtype, self.param_dtype, self.precision, self.drop, rates[index])
