"""The transformer block."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from vit_flax.config import NO_DROPS, DropRates, ViTConfig
from vit_flax.models.attention import Attention
from vit_flax.models.drop import drop_path
from vit_flax.models.layer_scale import LayerScale
from vit_flax.models.mlp import Mlp
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.precision import Precision
from vit_flax.models.swiglu import SwiGLU


def build_attention(cfg: ViTConfig, drop: DropRates = NO_DROPS, **runtime: Any) -> Attention:
    """Returns the attention that `cfg` describes."""
    runtime = {**runtime, "attn_drop": drop.attn_drop_rate, "proj_drop": drop.proj_drop_rate}
    return Attention(
        cfg.embed_dim, cfg.num_heads, cfg.qkv_bias, cfg.qk_scale, cfg.value_skip, cfg.qk_norm, cfg.proj_bias,
        cfg.scale_attn_norm, cfg.norm_layer, cfg.norm_eps, **runtime,
    )  # fmt: skip


def build_mlp(cfg: ViTConfig, drop: DropRates = NO_DROPS, **runtime: Any) -> Mlp | SwiGLU:
    """Returns the MLP that `cfg` describes, gated or not."""
    layer = Mlp if cfg.mlp_layer == "mlp" else SwiGLU
    norm = {"norm_layer": cfg.norm_layer if cfg.scale_mlp_norm else None, "norm_eps": cfg.norm_eps}
    runtime = {**runtime, **norm, "drop": drop.proj_drop_rate}
    return layer(cfg.mlp_dim, activation=cfg.activation, use_bias=cfg.mlp_bias, **runtime)


class Block(nn.Module):
    """Adds attention, then an MLP, each on normalised tokens and with LayerScale if `init_values` is set.

    Reference: the tutorial's Encoding(dim, num_heads, hidden_chan_mul, ...); timm's Block.
    """

    config: ViTConfig
    precision: Precision = Precision()
    drop: DropRates = NO_DROPS
    drop_path: Any = 0.0  # of both residual branches; a number, or an array in a scanned loop

    def setup(self) -> None:
        """Builds the layers."""
        cfg = self.config
        norm = NORM_LAYERS[cfg.norm_layer]
        self.norm1 = norm(cfg.norm_eps, self.precision)
        self.setup_attention()
        self.norm2 = norm(cfg.norm_eps, self.precision)
        self.mlp = build_mlp(cfg, self.drop, precision=self.precision)
        if cfg.init_values is not None:
            self.ls1 = LayerScale(cfg.init_values, self.precision)
            self.ls2 = LayerScale(cfg.init_values, self.precision)

    def setup_attention(self) -> None:
        """Builds the attention."""
        self.attn = build_attention(self.config, self.drop, precision=self.precision)

    def __call__(self, x: Float[Array, "b n d"], *positions: Any) -> Float[Array, "b n d"]:
        """Returns the tokens after both residual steps; `positions` go to an attention that takes them."""
        if self.config.init_values is None:
            x = x + self.keep(self.attn(self.norm1(x), *positions))
            return x + self.keep(self.mlp(self.norm2(x)))
        x = x + self.keep(self.ls1(self.attn(self.norm1(x), *positions)))
        return x + self.keep(self.ls2(self.mlp(self.norm2(x))))

    def keep(self, branch: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns a residual branch, left out at random in training."""
        return drop_path(self, branch, self.drop_path)
