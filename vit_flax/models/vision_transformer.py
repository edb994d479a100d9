"""The Vision Transformer."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import PrecisionLike
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from vit_flax.config import ATTENTION_POOLS, FIXED_POS_EMBEDS, NO_DROPS, DropRates, ViTConfig
from vit_flax.models.attention_pool import AttentionPool, QueryPool
from vit_flax.models.block_types import build_block
from vit_flax.models.drop import dropout
from vit_flax.models.intermediates import Intermediate, check_format, laid_out, taken_blocks
from vit_flax.models.linear import Linear
from vit_flax.models.loop import NO_REMAT, run_model
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.padded_patches import resize_to_each
from vit_flax.models.parts import build_positions, build_tokenizer
from vit_flax.models.placed import as_batch_of, explicit_sharding, reshape
from vit_flax.models.pooling import pool_tokens
from vit_flax.models.pos_embed import add_to_each, simple_sincos_2d, sincos_2d, sinusoid_1d
from vit_flax.models.precision import GPUS, HIGHEST, Precision, accumulator_dtype, target
from vit_flax.models.resample import resize_pos_embed


class VisionTransformer(nn.Module):
    """Classifies images: patches, prefix tokens, positions, `depth` blocks, norm, pooling, head.

    Entry points for `apply`: the call itself (logits), `method="features"` (tokens after the final norm, prefix tokens
    first), `method="forward_intermediates"` (tokens after any of the blocks), `method="backbone"` (logits from patch
    tokens) and `method="both_heads"` (class and distillation logits). A fixed position table is kept with the
    parameters, as torch keeps it in the state_dict, but gets no gradient.

    Raises:
        ValueError: images or tokens of another shape than the config's; the message names both.

    Reference: the tutorial's ViT_Model and ViT_Backbone; timm.models.vision_transformer.VisionTransformer and
    timm.models.deit.VisionTransformerDistilled.
    """

    config: ViTConfig
    dtype: DTypeLike | None = None  # of the matrix products' operands; None: what inputs and parameters promote to
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike | Precision = HIGHEST  # of float32 products, or a whole Precision
    drop: DropRates = NO_DROPS  # acts only in an apply with rngs={"dropout": key}
    remat: str = NO_REMAT  # what the backward pass of a block does not recompute: see vit_flax.models.loop
    scan: bool = False  # the blocks as one scanned loop

    @property
    def policy(self) -> Precision:
        """The dtypes that all layers get."""
        return Precision.of(self.dtype, self.param_dtype, self.precision)

    def setup(self) -> None:
        """Builds the layers, in the order in which they run."""
        cfg, policy = self.config, self.policy
        norm = partial(NORM_LAYERS[cfg.norm_layer], cfg.norm_eps, policy)
        wide = policy.wide  # what leaves the blocks is not rounded again
        last_norm = partial(NORM_LAYERS[cfg.norm_layer], cfg.norm_eps, wide)
        setattr(self, cfg.tokens.path, build_tokenizer(cfg, policy))
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
        self.positions = build_positions(cfg)
        self.positions.setup_model(self)
        self.blocks = [build_block(cfg, index, policy, self.drop) for index in range(cfg.depth)]
        if cfg.final_norm and not cfg.fc_norm:
            self.norm = last_norm()
        if cfg.neck_chans is not None:
            self.neck = self.positions.build_neck(wide)
        if cfg.global_pool == "map":
            fields = (cfg.pool_num_heads, cfg.pool_mlp_dim, cfg.activation, cfg.norm_layer, cfg.norm_eps)
            self.attn_pool = AttentionPool(*fields, wide)
        if cfg.global_pool == "query":
            self.attn_pool = QueryPool(cfg.pool_num_heads, cfg.qkv_bias, wide)
        if cfg.fc_norm:
            self.fc_norm = last_norm()
        if cfg.representation_size is not None:
            self.pre_logits = Linear(cfg.representation_size, True, wide)
        if cfg.num_classes:
            self.head = Linear(cfg.num_classes, cfg.head_bias, wide)
            if cfg.head_dist:
                self.head_dist = Linear(cfg.num_classes, cfg.head_bias, wide)

    @nn.nowrap
    def _token(self, name: str, count: int) -> Array:  # (1, n, d)
        return self.param(name, nn.initializers.normal(0.02), (1, count, self.config.embed_dim), self.policy.params)

    @nn.nowrap
    def _init_pos_embed(self, key: Array) -> Array:
        cfg, dtype = self.config, self.policy.params
        shape = (1, cfg.num_pos_embed_rows, cfg.embed_dim)
        if cfg.pos_embed == "sinusoid":
            return jnp.asarray(sinusoid_1d(*shape[1:]), dtype)
        if cfg.pos_embed == "sincos_2d":
            return jnp.asarray(sincos_2d(cfg.grid_size, cfg.embed_dim, cfg.num_embed_prefix_tokens), dtype)
        return nn.initializers.normal(0.02)(key, shape, dtype)

    def __call__(
        self, images: ArrayLike, mask: ArrayLike | None = None, spatial_shapes: ArrayLike | None = None
    ) -> Array:
        """Returns the logits (B, K), or the pooled features when `num_classes` is 0.

        Args:
            images: (B, H, W, C); or patches (B, N, p p C) where the config's tokens are `PaddedPatches`.
            mask: (B, N), False for padding patches.
            spatial_shapes: (B, 2), patches along height and width of each image.
        """
        return self.classify(self.features(images, mask, spatial_shapes), mask)

    def backbone(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Returns the logits from patch tokens."""
        return self.classify(self.encode(tokens))

    def both_heads(self, images: ArrayLike) -> tuple[Float[Array, "b k"], Float[Array, "b k"]]:
        """Returns the logits of the class token and of the distillation token, which distillation trains apart."""
        return self.distilled(self.features(images))

    def features(
        self, images: ArrayLike, mask: ArrayLike | None = None, spatial_shapes: ArrayLike | None = None
    ) -> Array:
        """Returns all tokens (B, N, D) after the final norm, prefix tokens first, those of the padding too."""
        return self.encode(self.embed(images, mask, spatial_shapes), mask, spatial_shapes)

    def forward_intermediates(
        self,
        images: ArrayLike,
        indices: int | Sequence[int] | np.ndarray | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NHWC",
        intermediates_only: bool = False,
        mask: ArrayLike | None = None,
        spatial_shapes: ArrayLike | None = None,
    ) -> list[Intermediate] | tuple[Array, list[Intermediate]]:
        """Returns what `features` returns, and the tokens after blocks, those of the first block first.

        Tokens are patches (B, H, W, D) or (B, N, D); with `return_prefix_tokens` each is a pair of these and the
        prefix tokens (B, P, D), where the model has any. Only what is asked for is kept, in scanned models too.

        Args:
            images: as of the call itself.
            indices: numbers of blocks, negative ones from the end; an int: so many last ones; None: all.
            return_prefix_tokens: return class, distillation and register tokens, too.
            norm: apply the final norm to all of them; nothing, where the norm stands after the pooling (`fc_norm`), or
                the neck reads several blocks together.
            stop_early: leave out the blocks after the last one that is asked for; `features` then end there.
            output_fmt: 'NHWC' or 'NLC'.
            intermediates_only: return the list alone.
            mask: as of the call itself.
            spatial_shapes: as of the call itself.

        Raises:
            ValueError: no such block or format; or a grid of images of different shapes; or blocks are left out
                that the neck reads.

        Reference: timm's forward_intermediates, whose grids are NCHW; DINOv2's get_intermediate_layers(norm=True);
        transformers' hidden_states[1:].
        """
        cfg = self.config
        taken, grid = taken_blocks(indices, cfg.depth), check_format(output_fmt, spatial_shapes)
        depth = taken[-1] + 1 if stop_early else cfg.depth
        read = () if intermediates_only else self._neck_reads()
        if read and read[-1] >= depth:
            raise ValueError("the neck reads every stage: pass `intermediates_only=True` with `stop_early=True`")
        kept = tuple(sorted({*taken, *read}))
        embedded = self.embed(images, mask, spatial_shapes)
        tokens, found = self._through(embedded, mask, spatial_shapes, kept, depth)
        after = dict(zip(kept, found, strict=True))
        parts = {i: self._finished(after[i]) if norm and not self._neck_reads() else after[i] for i in taken}
        intermediates = [
            laid_out(_widened(part), cfg, cfg.grid_before(i + 1), grid, return_prefix_tokens)
            for i, part in parts.items()
        ]
        if intermediates_only:
            return intermediates
        return self._finished(tokens, [after[i] for i in read]), intermediates

    def embed(self, images: ArrayLike, mask: ArrayLike | None = None, spatial_shapes: ArrayLike | None = None) -> Array:
        """Returns the patch tokens (B, N, D)."""
        tokenizer: Any = getattr(self, self.config.tokens.path)
        if mask is None and spatial_shapes is None:
            return tokenizer(jnp.asarray(images))
        padding = (None if given is None else jnp.asarray(given) for given in (mask, spatial_shapes))
        return tokenizer(jnp.asarray(images), *padding)

    def encode(
        self, tokens: Float[Array, "b p d"], mask: ArrayLike | None = None, spatial_shapes: ArrayLike | None = None
    ) -> Float[Array, "b n e"]:
        """Adds prefix tokens and positions to patch tokens, runs the blocks and the final norm."""
        read = self._neck_reads()
        return self._finished(*self._through(tokens, mask, spatial_shapes, read, self.config.depth))

    def feature_pyramid(self, images: ArrayLike) -> list[Float[Array, "b h w c"]]:
        """Returns the feature maps of the neck, from fine to coarse; the last is that of `features`.

        Raises:
            ValueError: the model has no such neck.
        """
        if not (read := self._neck_reads()):
            raise ValueError("this model has no feature pyramid; method='features' has its tokens")
        maps = self.neck(self._through(self.embed(images), None, None, read, self.config.depth)[1])
        return [_widened(level) for level in maps]

    @nn.nowrap
    def _neck_reads(self) -> tuple[int, ...]:
        """Returns the numbers of the blocks of whose tokens the neck makes maps, if it is such a one."""
        return () if self.config.neck_chans is None else self.positions.neck_reads()

    def _finished(
        self, tokens: Float[Array, "b n d"], stages: Sequence[Float[Array, "b _ _"]] = ()
    ) -> Float[Array, "b m e"]:
        """Returns the tokens after the final norm or the neck, if there is one before the pooling."""
        tokens = self.norm(tokens) if self.config.final_norm and not self.config.fc_norm else tokens
        if stages:
            coarsest = self.neck(stages)[-1]
            tokens = reshape(coarsest, coarsest.shape[0], -1, coarsest.shape[-1])
        elif self.config.neck_chans is not None:
            tokens = self.neck(tokens)
        return _widened(tokens)

    def _through(
        self,
        tokens: Float[Array, "b p d"],
        mask: ArrayLike | None,
        spatial_shapes: ArrayLike | None,
        taken: tuple[int, ...],
        depth: int,
    ) -> tuple[Float[Array, "b n e"], list[Float[Array, "b _ _"]]]:
        """Returns all tokens after the first `depth` blocks, and after each of the `taken` ones."""
        cfg = self.config
        expected = (cfg.num_patches, cfg.embed_dim)
        if tokens.ndim != 3 or (spatial_shapes is None and tuple(tokens.shape[1:]) != expected):
            raise ValueError(f"tokens must have shape (batch, {expected[0]}, {expected[1]}), got {tokens.shape}")
        tokens = dropout(
            self, self.policy.cast_to_stream(self._add_prefix(tokens, spatial_shapes)), self.drop.pos_drop_rate
        )
        if cfg.pre_norm:
            tokens = self.policy.cast_to_stream(self.norm_pre(tokens))
        inputs = self.positions.block_inputs(self, self._with_prefix(mask))
        return self._run_blocks(tokens, inputs[:depth], taken)

    def _add_prefix(
        self, tokens: Float[Array, "b p d"], spatial_shapes: ArrayLike | None = None
    ) -> Float[Array, "b n d"]:
        cfg = self.config
        names = ("cls_token",) * cfg.class_token + ("dist_token",) * cfg.dist_token
        names += ("reg_token",) * bool(cfg.reg_tokens)
        prefix = [getattr(self, name).astype(tokens.dtype) for name in names]
        prefix = jnp.concatenate(prefix, axis=1) if prefix else None
        if cfg.pos_embed != "none":
            rows = cfg.num_embed_prefix_tokens
            table = self._pos_table(tokens)
            own = self._for_each(table[:, rows:], spatial_shapes, tokens.shape[1])
            # the compiler does not divide a named layout among several
            one_gpu = self.policy.stored is not None and target().platform in GPUS and target().devices == 1
            is_shared = own.shape[0] == 1 and explicit_sharding(tokens) is None
            tokens = add_to_each(tokens, own) if one_gpu and is_shared else tokens + own
            if prefix is not None and rows:
                prefix = jnp.concatenate([prefix[:, :rows] + table[:, :rows], prefix[:, rows:]], axis=1)
        if prefix is None:
            return tokens
        prefix = jnp.broadcast_to(prefix, (tokens.shape[0], *prefix.shape[1:]), out_sharding=as_batch_of(tokens, 3))
        return jnp.concatenate([prefix.astype(tokens.dtype), tokens], axis=1)

    def _pos_table(self, tokens: Array) -> Array:
        cfg = self.config
        if cfg.pos_embed == "native_sincos_2d":
            dtype = accumulator_dtype(tokens.dtype)
            return jnp.asarray(sincos_2d(cfg.grid_size, cfg.embed_dim, cfg.num_embed_prefix_tokens, dtype))
        if cfg.pos_embed == "simple_sincos_2d":
            return jnp.asarray(simple_sincos_2d(cfg.grid_size, cfg.embed_dim, cfg.num_embed_prefix_tokens))
        if cfg.pos_embed in FIXED_POS_EMBEDS:
            return lax.stop_gradient(self.pos_embed)
        table = self.pos_embed[:, 1:] if cfg.pos_embed_class_row else self.pos_embed
        grid, rows = cfg.pos_embed_grid or cfg.grid_size, cfg.num_embed_prefix_tokens
        table = resize_pos_embed(table, grid, cfg.grid_size, rows, cfg.pos_embed_fit)
        return self.positions.position_table(self, table)

    def _for_each(self, table: Array, spatial_shapes: ArrayLike | None, length: int) -> Array:
        if spatial_shapes is None:
            return table
        return resize_to_each(table[0].reshape(*self.config.grid_size, -1), jnp.asarray(spatial_shapes), length)

    def _with_prefix(self, mask: ArrayLike | None) -> Array | None:
        """Returns the mask (B, N) of all tokens from that of the patches."""
        if mask is None:
            return None
        return jnp.pad(jnp.asarray(mask, bool), ((0, 0), (self.config.num_prefix_tokens, 0)), constant_values=True)

    def _run_blocks(
        self, tokens: Float[Array, "b n d"], inputs: list[Any], taken: tuple[int, ...]
    ) -> tuple[Float[Array, "b m e"], list[Float[Array, "b _ _"]]]:
        return run_model(self, tokens, inputs, taken)

    def classify(self, tokens: Float[Array, "b n d"], mask: ArrayLike | None = None) -> Array:
        """Pools the tokens of `encode` and applies the head; `mask` is of the patches that are no padding."""
        cfg = self.config
        if cfg.head_dist:
            class_logits, dist_logits = self.distilled(tokens)
            return (class_logits + dist_logits) / 2
        pooled = self._pre_head(self.pool(tokens, mask))
        return self.head(pooled) if cfg.num_classes else pooled

    def pool(self, tokens: Float[Array, "b n d"], mask: ArrayLike | None = None) -> Float[Array, "b *n e"]:
        """Reduces the tokens of `encode` to one vector an image; to themselves where global_pool is 'none'."""
        cfg = self.config
        hides = self._with_prefix(mask)
        if cfg.global_pool in ATTENTION_POOLS:
            first = 0 if cfg.pool_include_prefix else cfg.num_prefix_tokens
            return self.attn_pool(tokens[:, first:], None if hides is None else hides[:, first:])
        prefix, chosen = cfg.num_prefix_tokens, cfg.pool_tokens
        return pool_tokens(tokens, cfg.global_pool, prefix, cfg.pool_include_prefix, hides, chosen)

    def distilled(self, tokens: Array) -> tuple[Array, Array]:
        """Returns the logits of the class token and of the distillation token from the tokens of `encode`."""
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


def _widened(x: Array) -> Array:
    """Returns what leaves the model, in float32 or wider."""
    return x.astype(accumulator_dtype(x.dtype))
