"""The parallel transformer block: attention and MLP side by side, of one normalised input."""

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from vit_flax.config import NO_DROPS, DropRates, ViTConfig
from vit_flax.models.activations import get_activation
from vit_flax.models.attention import attention_weights, dot_product_attention, record_weights
from vit_flax.models.drop import drop_path, refuse_drops
from vit_flax.models.layer_scale import LayerScale
from vit_flax.models.linear import Linear
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.precision import Precision
from vit_flax.models.qkv import merge_heads, split_qkv


class ParallelScalingBlock(nn.Module):
    """Adds attention and MLP of the same normalised tokens; one fused projection gives hidden layer, q, k and v.

    Reference: timm's ParallelScalingBlock; ViT-22B, arXiv 2302.05442.
    """

    config: ViTConfig
    precision: Precision = Precision()
    drop: DropRates = NO_DROPS
    drop_path: float | Array = 0.0
    index: int = 0  # the block's place, from 0

    def setup(self) -> None:
        """Builds the layers."""
        cfg = self.config
        refuse_drops(cfg.block, self.drop, "attn_drop_rate", "proj_drop_rate")
        norm = partial(NORM_LAYERS[cfg.norm_layer], cfg.norm_eps, self.precision)
        self.in_norm = norm()
        self.in_proj = self._linear(cfg.mlp_dim + 3 * cfg.embed_dim, use_bias=cfg.qkv_bias)
        if not cfg.qkv_bias:
            self.mlp_bias = self.param("mlp_bias", nn.initializers.zeros, (cfg.mlp_dim,), self.precision.params)
        if cfg.qk_norm:
            self.q_norm, self.k_norm = norm(), norm()
        self.setup_mixing()
        if cfg.init_values is not None:
            self.ls = LayerScale(cfg.init_values, self.precision)

    @nn.nowrap
    def setup_mixing(self) -> None:
        """Builds the layers after the fused projection."""
        self.attn_out_proj, self.mlp_out_proj = self._linear(self.config.embed_dim), self._linear(self.config.embed_dim)

    @nn.nowrap
    def _linear(self, features: int, use_bias: bool = True) -> Linear:
        return Linear(features, use_bias, self.precision)

    def __call__(self, x: Float[Array, "b n d"], given: None = None) -> Float[Array, "b n d"]:
        """Returns the tokens after the residual step."""
        cfg = self.config
        y = self.in_proj(self.in_norm(x))
        hidden = (
            y[..., : cfg.mlp_dim]
            if cfg.qkv_bias
            else self.precision.cast_to_stored(y[..., : cfg.mlp_dim] + self.mlp_bias)
        )
        qkv = y[..., cfg.mlp_dim :].astype(self.precision.operand_dtype(y))
        q, k, v = split_qkv(qkv, cfg.num_heads)
        y = self.mix(q, k, v, hidden)
        return x + drop_path(self, y if cfg.init_values is None else self.ls(y), self.drop_path)

    def mix(self, q: Array, k: Array, v: Array, hidden: Float[Array, "b n h"]) -> Float[Array, "b n d"]:
        """Returns the residual branch; `hidden` is the MLP's layer before its activation."""
        cfg = self.config
        if cfg.qk_norm:
            q, k = self.q_norm(q).astype(v.dtype), self.k_norm(k).astype(v.dtype)
        scale = cfg.qk_scale or cfg.head_dim**-0.5
        record_weights(self, lambda: attention_weights(q, k, scale))
        out = dot_product_attention(q, k, v, scale, self.precision)
        activation = get_activation(cfg.activation)
        mlp = self.mlp_out_proj(activation(hidden), source=(activation, hidden))
        return self.attn_out_proj(merge_heads(out)) + mlp
