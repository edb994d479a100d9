"""The text transformer of CLIP and SigLIP."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vit_flax.config import NO_DROPS, DropRates, TextConfig
from vit_flax.models.attention_pool import AttentionPool
from vit_flax.models.block_types import build_block
from vit_flax.models.drop import dropout
from vit_flax.models.linear import Linear
from vit_flax.models.loop import NO_REMAT, run_model
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.parts import build_positions
from vit_flax.models.placed import as_batch_of
from vit_flax.models.pooling import pool_tokens
from vit_flax.models.precision import HIGHEST, Precision, accumulator_dtype


class TextTransformer(nn.Module):
    """Embeds texts: token and position tables, the blocks of a Vision Transformer, norm, pooling, projection.

    Texts are token ids (B, N), as many as the context has or fewer. An id outside the vocabulary makes the output of
    its text NaN: a compiled program cannot refuse it.

    Raises:
        ValueError: texts are longer than the context.

    Reference: open_clip.transformer.TextTransformer; transformers' CLIPTextModelWithProjection, SiglipTextModel.
    """

    config: TextConfig
    dtype: DTypeLike | None = None  # of the matrix products' operands; None: what inputs and parameters promote to
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = HIGHEST  # of float32 products, or a whole Precision
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
        blocks, table = cfg.blocks, nn.initializers.normal(0.02)
        self.token_embed = self.param("token_embed", table, (cfg.vocab_size, cfg.embed_dim), policy.params)
        self.pos_embed = self.param("pos_embed", table, (1, cfg.context_length, cfg.embed_dim), policy.params)
        self.positions = build_positions(blocks)
        self.blocks = [build_block(blocks, index, policy, self.drop) for index in range(cfg.depth)]
        wide = policy.wide  # what leaves the blocks is not rounded again
        self.norm = partial(NORM_LAYERS[blocks.norm_layer], cfg.norm_eps, wide)()
        if cfg.pool == "map":
            fields = (cfg.num_heads, cfg.mlp_dim, cfg.activation, blocks.norm_layer, cfg.norm_eps)
            self.attn_pool = AttentionPool(*fields, wide)
        if cfg.output_dim:
            self.head = Linear(cfg.output_dim, cfg.proj_bias, wide)

    def __call__(self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None) -> Float[Array, "b e"]:
        """Returns one vector a text, projected, not normalised; `mask` is False for padding."""
        pooled = self.pool(self.features(tokens, mask), tokens, mask)
        return self.head(pooled) if self.config.output_dim else pooled

    def features(self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None) -> Float[Array, "b n d"]:
        """Returns all tokens after the final norm, those of the padding too."""
        cfg = self.config
        if tokens.ndim != 2 or not 0 < tokens.shape[1] <= cfg.context_length:
            raise ValueError(f"texts must be (batch, 1 to {cfg.context_length} tokens), got {tokens.shape}")
        place = as_batch_of(tokens, 3)
        rows: Any = self.token_embed.at[tokens].get(mode="fill", fill_value=jnp.nan, out_sharding=place)
        x = dropout(
            self, self.policy.cast_to_stream(rows + self.pos_embed[:, : tokens.shape[1]]), self.drop.pos_drop_rate
        )
        mask = None if mask is None else mask.astype(bool)
        x = self._run_blocks(x, self.positions.block_inputs(self, mask))
        x = self.norm(x)
        return x.astype(accumulator_dtype(x.dtype))

    def _run_blocks(self, x: Float[Array, "b n d"], inputs: list[Any]) -> Float[Array, "b n d"]:
        return run_model(self, x, inputs)[0]

    def pool(
        self, x: Float[Array, "b n d"], tokens: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b d"]:
        """Reduces the tokens of `features` to one vector a text; `tokens` are its numbers."""
        cfg = self.config
        if cfg.pool in ("eos", "argmax"):
            # the first where there are several; token 0 where no token is the end
            place = (tokens == cfg.eos_token_id).argmax(1) if cfg.pool == "eos" else tokens.argmax(1)
            return jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]
        if cfg.pool == "last":
            return x[:, -1]
        if cfg.pool == "map":
            return self.attn_pool(x, mask)
        return pool_tokens(x, "token" if cfg.pool == "first" else cfg.pool, 0, mask=mask)
