"""The Vision Transformer."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.config import FIXED_POS_EMBEDS, NO_DROPS, DropRates, ViTConfig
from vit_flax.models.attention_pool import AttentionPool
from vit_flax.models.blocks import build_block
from vit_flax.models.drop import dropout
from vit_flax.models.layers import NO_REMAT, run_blocks
from vit_flax.models.linear import Linear
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.patch_embed import PatchEmbed
from vit_flax.models.pooling import pool_tokens
from vit_flax.models.pos_embed import simple_sincos_2d, sincos_2d, sinusoid_1d
from vit_flax.models.precision import HIGHEST, Precision, accumulator_dtype


class VisionTransformer(nn.Module):
    """Classifies images: patches, prefix tokens, positions, `depth` blocks, norm, pooling, head.

    Entry points for `apply`: the call itself (logits), `method="features"` (tokens after the final norm, prefix tokens
    first), `method="backbone"` (logits from patch tokens) and `method="both_heads"` (class and distillation logits). A
    fixed position table is kept with the parameters, as torch keeps it in the state_dict, but gets no gradient.

    Raises:
        ValueError: images or tokens of another shape than the config's; the message names both.

    Reference: the tutorial's ViT_Model and ViT_Backbone; timm.models.vision_transformer.VisionTransformer and
    timm.models.deit.VisionTransformerDistilled.
    """

    config: ViTConfig
    dtype: DTypeLike | None = None  # of the matrix products' operands; None: what inputs and parameters promote to
    param_dtype: DTypeLike = jnp.float32
    precision: Any = HIGHEST  # of float32 products, or a whole Precision
    drop: DropRates = NO_DROPS  # acts only in an apply with rngs={"dropout": key}
    remat: str = NO_REMAT  # what the backward pass of a block does not recompute: see vit_flax.models.layers
    scan: bool = False  # the blocks as one scanned loop

    @property
    def policy(self) -> Precision:
        """The dtypes that all layers get."""
        return Precision.of(self.dtype, self.param_dtype, self.precision)

    def setup(self) -> None:
        """Builds the patch embedding and the backbone."""
        cfg = self.config
        norm = (cfg.norm_layer if cfg.patch_norm else None, cfg.norm_eps)
        fields = (cfg.image_size, cfg.patch_size, cfg.embed_dim, cfg.in_chans, cfg.patch_bias, cfg.crop_to_patches)
        self.patch_embed = PatchEmbed(*fields, *norm, self.policy)
        self.setup_backbone()

    def setup_backbone(self) -> None:
        """Builds everything after the tokens."""
        cfg = self.config
        norm = partial(NORM_LAYERS[cfg.norm_layer], cfg.norm_eps, self.policy)
        wide = self.policy.wide  # what leaves the blocks is not rounded again
        last_norm = partial(NORM_LAYERS[cfg.norm_layer], cfg.norm_eps, wide)
        if cfg.class_token:
            self.cls_token = self._token("cls_token", 1)
        if cfg.dist_token:
            self.dist_token = self._token("dist_token", 1)
        if cfg.reg_tokens:
            self.reg_token = self._token("reg_token", cfg.reg_tokens)
        if cfg.mask_token:
            self.mask_token = self._token("mask_token", 1)
        if cfg.pos_embed == "learned" or cfg.pos_embed in FIXED_POS_EMBEDS:
            self.pos_embed = self.param("pos_embed", self._init_pos_embed)
        if cfg.pre_norm:
            self.norm_pre = norm()
        self.blocks = [self.make_block(index) for index in range(cfg.depth)]
        if cfg.final_norm and not cfg.fc_norm:
            self.norm = last_norm()
        if cfg.global_pool == "map":
            fields = (cfg.pool_num_heads, cfg.pool_mlp_dim, cfg.activation, cfg.norm_layer, cfg.norm_eps)
            self.attn_pool = AttentionPool(*fields, wide)
        if cfg.fc_norm:
            self.fc_norm = last_norm()
        if cfg.representation_size is not None:
            self.pre_logits = Linear(cfg.representation_size, True, wide)
        if cfg.num_classes:
            self.head = Linear(cfg.num_classes, cfg.head_bias, wide)
            if cfg.head_dist:
                self.head_dist = Linear(cfg.num_classes, cfg.head_bias, wide)

    def make_block(self, index: int) -> nn.Module:
        """Returns block number `index`; a family with a block of its own says so here."""
        rate = self.drop.block_rates(self.config.depth)[index]
        return build_block(self.config, index, self.policy, self.drop, rate)

    def _token(self, name: str, count: int) -> Float[Array, "1 n d"]:
        return self.param(name, nn.initializers.normal(0.02), (1, count, self.config.embed_dim), self.policy.params)

    def _init_pos_embed(self, key: Array) -> Array:
        cfg = self.config
        shape = (1, cfg.num_embed_prefix_tokens + cfg.num_patches, cfg.embed_dim)
        if cfg.pos_embed == "sinusoid":
            return jnp.asarray(sinusoid_1d(*shape[1:]), self.policy.params)
        if cfg.pos_embed == "sincos_2d":
            return jnp.asarray(sincos_2d(cfg.grid_size, cfg.embed_dim, cfg.num_embed_prefix_tokens), self.policy.params)
        return nn.initializers.normal(0.02)(key, shape, self.policy.params)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Returns the logits, or the pooled features when `num_classes` is 0."""
        return self.backbone(self.embed(images))

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Returns the patch tokens."""
        return self.patch_embed(images)

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Returns all tokens after the final norm, prefix tokens first."""
        return self.encode(self.embed(images))

    def both_heads(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b k"], Float[Array, "b k"]]:
        """Returns the logits of the class token and of the distillation token, which distillation trains apart."""
        return self._distilled(self.features(images))

    def backbone(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Returns the logits from patch tokens."""
        return self.classify(self.encode(tokens))

    def encode(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Adds prefix tokens and positions to patch tokens, runs the blocks and the final norm."""
        cfg = self.config
        expected = (cfg.num_patches, cfg.embed_dim)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected:
            raise ValueError(f"tokens must have shape (batch, {expected[0]}, {expected[1]}), got {tokens.shape}")
        tokens = dropout(self, self.policy.flow(self._add_prefix(tokens)), self.drop.pos_drop_rate)
        if cfg.pre_norm:
            tokens = self.policy.flow(self.norm_pre(tokens))
        tokens = self._run_blocks(tokens, self.block_inputs())
        tokens = self.norm(tokens) if cfg.final_norm and not cfg.fc_norm else tokens
        return tokens.astype(accumulator_dtype(tokens.dtype))

    def block_inputs(self) -> list[tuple[Any, ...]]:
        """Returns what each block needs beside tokens; a family whose blocks need more says so here."""
        return [()] * self.config.depth

    def _run_blocks(self, tokens: Float[Array, "b n d"], inputs: list[tuple[Any, ...]]) -> Float[Array, "b n d"]:
        is_random = self.has_rng("dropout")
        if self.is_initializing() or not (is_random or self.scan or self.remat != NO_REMAT):
            for block, more in zip(self.blocks, inputs, strict=True):
                tokens = block(tokens, *more)
            return tokens
        if self.scan and self.config.block.startswith("diff"):
            raise ValueError(f"scan needs blocks that are alike, and those of block={self.config.block!r} are not")
        depth = self.config.depth
        params = [self.variables["params"][f"blocks_{i}"] for i in range(depth)]
        keys = jax.random.split(self.make_rng("dropout"), depth) if is_random else None
        blocks = [block.clone() for block in self.blocks]
        return run_blocks(blocks, params, inputs, keys, tokens, self.remat, self.scan)

    def _pos_table(self) -> Array:
        cfg = self.config
        if cfg.pos_embed == "simple_sincos_2d":
            return jnp.asarray(simple_sincos_2d(cfg.grid_size, cfg.embed_dim, cfg.num_embed_prefix_tokens))
        return lax.stop_gradient(self.pos_embed) if cfg.pos_embed in FIXED_POS_EMBEDS else self.pos_embed

    def _add_prefix(self, tokens: Float[Array, "b p d"]) -> Float[Array, "b n d"]:
        cfg = self.config
        names = ("cls_token",) * cfg.class_token + ("dist_token",) * cfg.dist_token
        names += ("reg_token",) * bool(cfg.reg_tokens)
        prefix = [getattr(self, name).astype(tokens.dtype) for name in names]
        prefix = jnp.concatenate(prefix, axis=1) if prefix else None
        if cfg.pos_embed != "none":
            rows = cfg.num_embed_prefix_tokens
            table = self._pos_table()
            tokens = tokens + table[:, rows:]
            if prefix is not None and rows:
                prefix = jnp.concatenate([prefix[:, :rows] + table[:, :rows], prefix[:, rows:]], axis=1)
        if prefix is None:
            return tokens
        prefix = jnp.broadcast_to(prefix, (tokens.shape[0], *prefix.shape[1:]))
        return jnp.concatenate([prefix.astype(tokens.dtype), tokens], axis=1)

    def classify(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Pools the tokens of `encode` and applies the head."""
        cfg = self.config
        if cfg.head_dist:
            class_logits, dist_logits = self._distilled(tokens)
            return (class_logits + dist_logits) / 2
        return self._head(self.pool(tokens))

    def pool(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b e"]:
        """Reduces the tokens of `encode` to one vector an image, before the last norm and the head."""
        cfg = self.config
        if cfg.global_pool == "map":
            return self.attn_pool(tokens if cfg.pool_include_prefix else tokens[:, cfg.num_prefix_tokens :])
        return pool_tokens(tokens, cfg.global_pool, cfg.num_prefix_tokens, cfg.pool_include_prefix)

    def _distilled(self, tokens: Array) -> tuple[Array, Array]:
        cfg = self.config
        if not cfg.head_dist:
            raise ValueError("this model has one head; a model with head_dist=True has two")
        class_token, dist_token = self._pre_head(tokens[:, 0]), self._pre_head(tokens[:, 1])
        return (self.head(class_token), self.head_dist(dist_token)) if cfg.num_classes else (class_token, dist_token)

    def _pre_head(self, pooled: Array) -> Array:
        cfg = self.config
        pooled = self.fc_norm(pooled) if cfg.fc_norm else pooled
        pooled = pooled if cfg.representation_size is None else jnp.tanh(self.pre_logits(pooled))
        return dropout(self, pooled, self.drop.drop_rate)

    def _head(self, pooled: Array) -> Array:
        pooled = self._pre_head(pooled)
        return self.head(pooled) if self.config.num_classes else pooled
