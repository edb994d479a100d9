"""The transformer block."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.config import ViTConfig
from vit_flax.models.attention import Attention
from vit_flax.models.linear import PRECISION
from vit_flax.models.mlp import Mlp
from vit_flax.models.norm import NORM_LAYERS


class Block(nn.Module):
    """Adds attention, then an MLP, each on normalised tokens.

    Reference: the tutorial's Encoding(dim, num_heads, hidden_chan_mul, ...); timm's Block.
    """

    config: ViTConfig
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Any = PRECISION

    def setup(self) -> None:
        """Builds the four layers."""
        cfg = self.config
        runtime = {"dtype": self.dtype, "param_dtype": self.param_dtype, "precision": self.precision}
        norm = NORM_LAYERS[cfg.norm_layer]
        self.norm1 = norm(cfg.norm_eps, self.param_dtype)
        self.attn = Attention(cfg.embed_dim, cfg.num_heads, cfg.qkv_bias, cfg.qk_scale, cfg.value_skip, **runtime)
        self.norm2 = norm(cfg.norm_eps, self.param_dtype)
        self.mlp = Mlp(cfg.mlp_dim, activation=cfg.activation, **runtime)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns the tokens after both residual steps."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
