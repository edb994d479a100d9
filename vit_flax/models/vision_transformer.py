"""The Vision Transformer."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.config import ViTConfig
from vit_flax.models.block import Block
from vit_flax.models.linear import PRECISION, Linear
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.patch_embed import PatchEmbed
from vit_flax.models.pos_embed import sinusoid_1d


class VisionTransformer(nn.Module):
    """Classifies images: patches, class token, positions, `depth` blocks, norm, head.

    Three entry points for `apply`: the call itself (logits), `method="features"` (tokens after the final norm, prefix
    tokens first) and `method="backbone"` (logits from patch tokens). A fixed position table is kept with the
    parameters, as torch keeps it in the state_dict, but gets no gradient.

    Raises:
        ValueError: images or tokens of another shape than the config's; the message names both.

    Reference: the tutorial's ViT_Model and ViT_Backbone; timm.models.vision_transformer.VisionTransformer.
    """

    config: ViTConfig
    dtype: DTypeLike | None = None  # of the matrix products' operands; None: what inputs and parameters promote to
    param_dtype: DTypeLike = jnp.float32
    precision: Any = PRECISION

    def setup(self) -> None:
        """Builds the patch embedding and the backbone."""
        cfg = self.config
        runtime = (self.dtype, self.param_dtype, self.precision)
        self.patch_embed = PatchEmbed(cfg.image_size, cfg.patch_size, cfg.embed_dim, cfg.in_chans, *runtime)
        self.setup_backbone()

    def setup_backbone(self) -> None:
        """Builds everything after the tokens."""
        cfg = self.config
        runtime = (self.dtype, self.param_dtype, self.precision)
        if cfg.class_token:
            shape = (1, 1, cfg.embed_dim)
            self.cls_token = self.param("cls_token", nn.initializers.normal(0.02), shape, self.param_dtype)
        if cfg.pos_embed != "none":
            self.pos_embed = self.param("pos_embed", self._init_pos_embed)
        self.blocks = [Block(cfg, *runtime) for _ in range(cfg.depth)]
        self.norm = NORM_LAYERS[cfg.norm_layer](cfg.norm_eps, self.param_dtype)
        if cfg.num_classes:
            self.head = Linear(cfg.num_classes, True, *runtime)

    def _init_pos_embed(self, key: Array) -> Array:
        cfg = self.config
        shape = (1, cfg.num_prefix_tokens + cfg.num_patches, cfg.embed_dim)
        if cfg.pos_embed == "sinusoid":
            return jnp.asarray(sinusoid_1d(*shape[1:]), self.param_dtype)
        return nn.initializers.normal(0.02)(key, shape, self.param_dtype)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Returns the logits, or the pooled features when `num_classes` is 0."""
        return self.backbone(self.embed(images))

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Returns the patch tokens."""
        return self.patch_embed(images)

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Returns all tokens after the final norm, prefix tokens first."""
        return self.encode(self.embed(images))

    def backbone(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Returns the logits from patch tokens."""
        return self.classify(self.encode(tokens))

    def encode(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Adds prefix tokens and positions to patch tokens, runs the blocks and the final norm."""
        cfg = self.config
        expected = (cfg.num_patches, cfg.embed_dim)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected:
            raise ValueError(f"tokens must have shape (batch, {expected[0]}, {expected[1]}), got {tokens.shape}")
        if cfg.class_token:
            cls_token = jnp.broadcast_to(self.cls_token, (tokens.shape[0], 1, cfg.embed_dim))
            tokens = jnp.concatenate([cls_token.astype(tokens.dtype), tokens], axis=1)
        if cfg.pos_embed != "none":
            fixed = cfg.pos_embed == "sinusoid"
            tokens = tokens + (lax.stop_gradient(self.pos_embed) if fixed else self.pos_embed)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def classify(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Pools normalised tokens and applies the head."""
        cfg = self.config
        if cfg.global_pool == "token":
            pooled = tokens[:, 0]
        elif cfg.global_pool == "avg":
            pooled = tokens[:, cfg.num_prefix_tokens :].mean(axis=1)
        else:
            pooled = tokens
        return self.head(pooled) if cfg.num_classes else pooled
