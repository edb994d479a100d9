"""Transformer blocks with differential attention."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.config import ViTConfig
from vit_flax.models.activations import get_activation
from vit_flax.models.attention import attention_weights, dot_product_attention, record_weights
from vit_flax.models.block import Block
from vit_flax.models.drop import refuse_drops
from vit_flax.models.linear import Linear
from vit_flax.models.norm import NORM_LAYERS, RMSNorm
from vit_flax.models.parallel_scaling_block import ParallelScalingBlock
from vit_flax.models.placed import reshape
from vit_flax.models.precision import Precision
from vit_flax.models.qkv import merge_heads, split_qkv

SUB_NORM_EPS = 1e-5


class DiffMixing(nn.Module):
    """Attends by the difference of two softmaxes, the second weighted by a learned lambda.

    Every head has two queries and two keys of half its width. What the weight starts from depends on the `index` of the
    block, and so does the factor of the result.

    Reference: timm.layers.DiffAttention; Differential Transformer, arXiv 2410.05258.
    """

    config: ViTConfig
    index: int
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, q: Array, k: Array, v: Array) -> Float[Array, "b n d"]:
        """Returns the mixed values of (B, H, N, E) queries, keys and values, heads merged."""
        cfg = self.config
        width = cfg.head_dim // 2
        q, k = (reshape(part, *part.shape[:3], 2, width) for part in (q, k))
        if cfg.qk_norm:
            norm = partial(NORM_LAYERS[cfg.norm_layer], cfg.norm_eps, self.precision)
            q, k = norm(name="q_norm")(q).astype(v.dtype), norm(name="k_norm")(k).astype(v.dtype)
        start = 0.8 - 0.6 * math.exp(-0.3 * self.index)
        names = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
        q1, k1, q2, k2 = (
            self.param(name, nn.initializers.normal(0.1), (width,), self.precision.params) for name in names
        )
        weight = jnp.exp((q1 * k1).sum()) - jnp.exp((q2 * k2).sum()) + start
        scale = cfg.qk_scale or width**-0.5
        halves = [(q[..., i, :], k[..., i, :]) for i in (0, 1)]
        record_weights(
            self, lambda: attention_weights(*halves[0], scale) - weight * attention_weights(*halves[1], scale)
        )
        mixed: Any = [dot_product_attention(*half, v, scale, self.precision) for half in halves]
        out = RMSNorm(SUB_NORM_EPS, self.precision, name="sub_norm")(mixed[0] - weight * mixed[1])
        return merge_heads(out * (1 - start))


class DiffAttention(nn.Module):
    """Differential attention with its input and output projections.

    Reference: timm.layers.DiffAttention.
    """

    config: ViTConfig
    index: int
    precision: Precision = Precision()

    @property
    def num_heads(self) -> int:
        """Heads of the values."""
        return self.config.num_heads

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], given: None = None) -> Float[Array, "b n d"]:
        """Returns the attended tokens."""
        cfg = self.config
        qkv = Linear(3 * cfg.embed_dim, cfg.qkv_bias, self.precision, name="qkv")(x)
        q, k, v = split_qkv(qkv.astype(self.precision.operand_dtype(qkv)), cfg.num_heads)
        x = DiffMixing(cfg, self.index, self.precision, name="mixing")(q, k, v)
        if cfg.scale_attn_norm:
            x = NORM_LAYERS[cfg.norm_layer](cfg.norm_eps, self.precision, name="norm")(x)
        return Linear(cfg.embed_dim, cfg.proj_bias, self.precision, name="proj")(x)


class DiffBlock(Block):
    """The transformer block with differential attention.

    Reference: timm's Block with attn_layer='diff'.
    """

    @nn.nowrap
    def make_attention(self) -> nn.Module:
        """Returns the attention."""
        refuse_drops(self.config.block, self.drop, "attn_drop_rate", "proj_drop_rate")
        return DiffAttention(self.config, self.index, self.precision)


class DiffParallelScalingBlock(ParallelScalingBlock):
    """The parallel block with differential attention; one layer projects attention and MLP together.

    Reference: timm's DiffParallelScalingBlock.
    """

    @nn.nowrap
    def setup_mixing(self) -> None:
        """Builds the attention and the last layer."""
        self.mixing = DiffMixing(self.config, self.index, self.precision)
        self.out_proj = self._linear(self.config.embed_dim)

    def mix(self, q: Array, k: Array, v: Array, hidden: Float[Array, "b n h"]) -> Float[Array, "b n d"]:
        """Returns the residual branch; `hidden` is the MLP's layer before its activation."""
        activated = get_activation(self.config.activation)(hidden)
        return self.out_proj(jnp.concatenate([self.mixing(q, k, v), activated], axis=-1))
