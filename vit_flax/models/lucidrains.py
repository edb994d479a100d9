"""The Vision Transformer of vit-pytorch: patches normalised before and after their projection, heads of any width."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from vit_flax.config import LucidrainsViTConfig
from vit_flax.models.attention import dot_product_attention
from vit_flax.models.drop import refuse_drops
from vit_flax.models.linear import Linear
from vit_flax.models.mlp import Mlp
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.patch_embed import check_images
from vit_flax.models.precision import Precision
from vit_flax.models.vision_transformer import VisionTransformer


class NormedPatchEmbed(nn.Module):
    """Cuts images into patches, row by row, normalises each, projects it and normalises the token.

    A patch's numbers are ordered row, column, channel.

    Raises:
        ValueError: the images' shape is not the config's.

    Reference: vit_pytorch.ViT.to_patch_embedding.
    """

    config: LucidrainsViTConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the projection and the norms around it."""
        cfg = self.config
        norm = NORM_LAYERS[cfg.norm_layer]
        self.patch_norm = norm(cfg.norm_eps, self.precision)
        self.proj = Linear(cfg.embed_dim, True, self.precision)
        self.norm = norm(cfg.norm_eps, self.precision)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Returns one token a patch."""
        cfg = self.config
        check_images(images, cfg.image_size, cfg.in_chans)
        (rows, columns), (height, width) = cfg.grid_size, cfg.patch_size
        # (B, H, W, C) -> (B, N, p p C)
        patches = images.reshape(-1, rows, height, columns, width, cfg.in_chans).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(images.shape[0], rows * columns, height * width * cfg.in_chans)
        return self.norm(self.proj(self.patch_norm(patches)))


class WideAttention(nn.Module):
    """Lets every token gather from every other, with heads whose width does not depend on the tokens'.

    Reference: vit_pytorch.vit.Attention without its norm, and vit_pytorch.simple_vit.Attention (proj_bias=False).
    """

    config: LucidrainsViTConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the projections."""
        cfg = self.config
        self.qkv = Linear(3 * cfg.num_heads * cfg.head_dim, cfg.qkv_bias, self.precision)
        if cfg.attn_proj:
            self.proj = Linear(cfg.embed_dim, cfg.proj_bias, self.precision)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns the attended tokens."""
        cfg = self.config
        batch, tokens, _ = x.shape
        qkv = self.qkv(x)
        # (B, N, 3 H E) -> (3, B, H, N, E)
        heads = qkv.reshape(batch, tokens, 3, cfg.num_heads, cfg.head_dim).transpose(2, 0, 3, 1, 4)
        heads = heads.astype(self.precision.operand_dtype(qkv))
        scale = cfg.qk_scale or cfg.head_dim**-0.5
        out: Any = dot_product_attention(heads[0], heads[1], heads[2], scale, self.precision)
        out = out.transpose(0, 2, 1, 3).reshape(batch, tokens, -1)
        return self.proj(out) if cfg.attn_proj else out


class WideBlock(nn.Module):
    """Adds attention with heads of any width, then an MLP, each on normalised tokens.

    Reference: one pair of vit_pytorch.vit.Transformer.layers.
    """

    config: LucidrainsViTConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the four layers."""
        cfg = self.config
        norm = NORM_LAYERS[cfg.norm_layer]
        self.norm1 = norm(cfg.norm_eps, self.precision)
        self.attn = WideAttention(cfg, self.precision)
        self.norm2 = norm(cfg.norm_eps, self.precision)
        self.mlp = Mlp(cfg.mlp_dim, activation=cfg.activation, precision=self.precision)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns the tokens after both residual steps."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LucidrainsViT(VisionTransformer):
    """A Vision Transformer with `NormedPatchEmbed` and `WideBlock`.

    Reference: vit_pytorch.ViT; vit_pytorch.SimpleViT (pos_embed='sincos_2d', no class token, proj_bias=False).
    """

    config: LucidrainsViTConfig

    def setup(self) -> None:
        """Builds the patch embedding and the backbone."""
        self.patch_embed = NormedPatchEmbed(self.config, self.policy)
        self.setup_backbone()

    def make_block(self, index: int) -> nn.Module:
        """Returns a block; all are alike."""
        refuse_drops("lucidrains", self.drop, "drop_path_rate", "attn_drop_rate", "proj_drop_rate")
        return WideBlock(self.config, self.policy)
