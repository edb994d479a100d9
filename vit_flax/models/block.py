"""The transformer block."""

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from vit_flax.config import NO_DROPS, DropRates, ViTConfig
from vit_flax.models.attention import Attention
from vit_flax.models.drop import drop_path
from vit_flax.models.layer_scale import LayerScale
from vit_flax.models.mlp import Mlp
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.parts import build_positions
from vit_flax.models.precision import Precision
from vit_flax.models.swiglu import SwiGLU


def build_attention(
    cfg: ViTConfig, precision: Precision, drop: DropRates = NO_DROPS, name: str | None = None, index: int = 0
) -> Attention:
    """Returns the attention of block `index` that `cfg` describes."""
    return Attention(
        cfg.dim_before(index + 1), cfg.position.heads(cfg, index), cfg.qkv_bias, cfg.qk_scale, cfg.value_skip,
        cfg.qk_norm, cfg.proj_bias, cfg.scale_attn_norm, cfg.norm_layer, cfg.norm_eps, precision, drop.attn_drop_rate,
        drop.proj_drop_rate, cfg.attn_head_dim, cfg.key_bias, cfg.attn_proj, build_positions(cfg, index), name=name,
    )  # fmt: skip


def build_mlp(
    cfg: ViTConfig, precision: Precision, drop: DropRates = NO_DROPS, name: str | None = None, index: int = 0
) -> Mlp | SwiGLU:
    """Returns the MLP of block `index` that `cfg` describes, gated or not."""
    layer = Mlp if cfg.mlp_layer == "mlp" else SwiGLU
    norm = {"norm_layer": cfg.norm_layer if cfg.scale_mlp_norm else None, "norm_eps": cfg.norm_eps}
    hidden = int(cfg.dim_before(index + 1) * cfg.mlp_ratio)
    return layer(
        hidden, activation=cfg.activation, use_bias=cfg.mlp_bias, precision=precision, drop=drop.proj_drop_rate,
        name=name, **norm,
    )  # fmt: skip


class Block(nn.Module):
    """Adds attention, then an MLP, each on normalised tokens and with LayerScale if `init_values` is set.

    With block='res_post' it adds normalised attention, then a normalised MLP.

    Reference: the tutorial's Encoding(dim, num_heads, hidden_chan_mul, ...); timm's Block; timm's ResPostBlock and
    EvaBlockPostNorm, Swin V2's residual post-norm, arXiv 2111.09883.
    """

    config: ViTConfig
    precision: Precision = Precision()
    drop: DropRates = NO_DROPS
    drop_path: float | Array = 0.0  # of both residual branches; a number, or an array in a scanned loop
    index: int = 0  # the block's place, from 0

    def setup(self) -> None:
        """Builds the layers."""
        cfg = self.config
        norm = NORM_LAYERS[cfg.norm_layer]
        self.norm1 = norm(cfg.norm_eps, self.precision)
        self.attn = self.make_attention()
        self.norm2 = norm(cfg.norm_eps, self.precision)
        self.mlp = build_mlp(cfg, self.precision, self.drop, index=self.index)
        if cfg.init_values is not None:
            self.ls1 = LayerScale(cfg.init_values, self.precision)
            self.ls2 = LayerScale(cfg.init_values, self.precision)

    @nn.nowrap
    def make_attention(self) -> nn.Module:
        """Returns the attention."""
        return build_attention(self.config, self.precision, self.drop, index=self.index)

    def __call__(self, x: Float[Array, "b n d"], given: Array | np.ndarray | None = None) -> Float[Array, "b n d"]:
        """Returns the tokens after both residual steps; `given` tells attention where the tokens are."""
        if self.config.block == "res_post":
            x = x + self._drop_path(self.norm1(self.attn(x, given)))
            return x + self._drop_path(self.norm2(self.mlp(x)))
        if self.config.init_values is None:
            x = x + self._drop_path(self.attn(self.norm1(x), given))
            return x + self._drop_path(self.mlp(self.norm2(x)))
        x = x + self._drop_path(self.ls1(self.attn(self.norm1(x), given)))
        return x + self._drop_path(self.ls2(self.mlp(self.norm2(x))))

    def _drop_path(self, branch: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return drop_path(self, branch, self.drop_path)
