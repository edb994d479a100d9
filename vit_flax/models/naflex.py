"""SigLIP 2's NaFlex: images of any aspect ratio, as patches padded to one number."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vit_flax.config import NaFlexViTConfig, ViTConfig
from vit_flax.models.attention import dot_product_attention, hide_keys
from vit_flax.models.block import Block
from vit_flax.models.drop import dropout, refuse_drops
from vit_flax.models.linear import Linear
from vit_flax.models.precision import HIGHEST, Precision
from vit_flax.models.vision_transformer import VisionTransformer


def resize_to_each(
    table: Float[Array, "h w d"], spatial_shapes: Int[Array, "b 2"], length: int
) -> Float[Array, "b n d"]:
    """Returns the position table resized to each image's grid of patches, row by row, for `length` tokens an image.

    Bilinear with antialias; tokens beyond an image's patches get its first position. The grids may be traced.

    Reference: Siglip2VisionEmbeddings.resize_positional_embeddings.
    """
    height, width, dim = table.shape
    rows, columns = spatial_shapes[:, :1], spatial_shapes[:, 1:]
    token = jnp.arange(length)[None]
    token = jnp.where(token < rows * columns, token, 0)
    weights = _weights(token // columns, rows, height, table.dtype)[..., :, None]
    weights = weights * _weights(token % columns, columns, width, table.dtype)[..., None, :]
    flat = weights.reshape(*weights.shape[:2], height * width)
    return jnp.matmul(flat, table.reshape(height * width, dim), precision=HIGHEST)


def _weights(index: Array, new: Array, old: int, dtype: Any) -> Float[Array, "b n s"]:
    """Returns how much each of `old` samples counts for the samples `index` of `new`."""
    scale = old / new.astype(dtype)
    stretch = jnp.maximum(scale, 1.0)
    centre = (index.astype(dtype) + 0.5) * scale
    distance = (jnp.arange(old, dtype=dtype) + 0.5 - centre[..., None]) / stretch[..., None]
    weights = jnp.maximum(1.0 - jnp.abs(distance), 0.0)
    return weights / weights.sum(-1, keepdims=True)


class NaFlexAttention(nn.Module):
    """Lets every token gather from those that the mask does not hide.

    Reference: transformers' Siglip2Attention.
    """

    config: ViTConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        """Returns the attended tokens."""
        cfg = self.config
        batch, tokens, dim = x.shape
        qkv = Linear(3 * dim, True, self.precision, name="qkv")(x)
        # (B, N, 3 H E) -> (3, B, H, N, E)
        heads = qkv.reshape(batch, tokens, 3, cfg.num_heads, cfg.head_dim).transpose(2, 0, 3, 1, 4)
        q, k, v = heads.astype(self.precision.operand_dtype(qkv))
        scale = cfg.head_dim**-0.5
        q, k = hide_keys(q, k, mask, scale)
        out: Any = dot_product_attention(q, k, v, scale, self.precision)
        return Linear(dim, True, self.precision, name="proj")(out.transpose(0, 2, 1, 3).reshape(batch, tokens, dim))


class NaFlexBlock(Block):
    """A block with `NaFlexAttention`."""

    def setup_attention(self) -> None:
        """Builds the attention."""
        refuse_drops("naflex", self.drop, "attn_drop_rate", "proj_drop_rate")
        self.attn = NaFlexAttention(self.config, self.precision)


class NaFlexViT(VisionTransformer):
    """A Vision Transformer for patches (B, N, p p C), a mask of those that are no padding, and grids (B, 2).

    `vit_flax.preprocessing.naflex` makes them of images. Images (B, H, W, C) of the config's size, without mask and
    grids, do as well.

    Raises:
        ValueError: the last axis is not of one patch, or mask and grids are missing.

    Reference: transformers' Siglip2VisionModel; arXiv 2502.14786.
    """

    config: NaFlexViTConfig

    def make_block(self, index: int) -> nn.Module:
        """Returns a block; all are alike but for the share of them that training leaves out."""
        rates = self.drop.block_rates(self.config.depth)
        return NaFlexBlock(self.config, self.policy, self.drop, rates[index])

    def __call__(self, patches: Array, mask: Array | None = None, spatial_shapes: Array | None = None) -> Array:
        """Returns the logits, or the pooled features when `num_classes` is 0; all tokens when nothing is pooled."""
        tokens, mask = self._encode(patches, mask, spatial_shapes)
        cfg = self.config
        if cfg.global_pool == "map":
            pooled = self.attn_pool(tokens, mask)
        elif cfg.global_pool == "avg":
            kept = mask[..., None].astype(tokens.dtype)
            pooled = (tokens * kept).sum(1) / kept.sum(1)
        else:
            pooled = tokens
        return self._head(pooled)

    def features(self, patches: Array, mask: Array | None = None, spatial_shapes: Array | None = None) -> Array:
        """Returns all tokens after the final norm, those of the padding too."""
        return self._encode(patches, mask, spatial_shapes)[0]

    def _encode(self, patches: Array, mask: Array | None, spatial_shapes: Array | None) -> tuple[Array, Array]:
        cfg = self.config
        height, width = cfg.patch_size
        pixels = height * width * cfg.in_chans
        if patches.ndim == 4:
            tokens = self.patch_embed(patches)
            mask = jnp.ones(tokens.shape[:2], bool)
            spatial_shapes = jnp.broadcast_to(jnp.asarray(cfg.grid_size), (len(tokens), 2))
        else:
            if patches.ndim != 3 or patches.shape[-1] != pixels:
                raise ValueError(f"patches must have shape (batch, patches, {pixels}), got {patches.shape}")
            if mask is None or spatial_shapes is None:
                raise ValueError("patches need their mask (batch, patches) and spatial_shapes (batch, 2)")
            batch, count, _ = patches.shape
            # one above the other, an image of one column of patches
            tokens = self.patch_embed.proj(patches.reshape(batch, count * height, width, cfg.in_chans))
            mask = mask.astype(bool)
        table = self.pos_embed[0].reshape(*cfg.grid_size, cfg.embed_dim)
        tokens = self.policy.flow(tokens + resize_to_each(table, spatial_shapes, tokens.shape[1]))
        tokens = dropout(self, tokens, self.drop.pos_drop_rate)
        return self.norm(self._run_blocks(tokens, [(mask,)] * cfg.depth)), mask
