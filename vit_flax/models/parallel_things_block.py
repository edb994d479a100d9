"""The transformer block of two attentions side by side, then two MLPs."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.config import ViTConfig
from vit_flax.models.block import build_attention, build_mlp
from vit_flax.models.layer_scale import LayerScale
from vit_flax.models.linear import PRECISION
from vit_flax.models.norm import NORM_LAYERS

NUM_PARALLEL = 2


class ParallelThingsBlock(nn.Module):
    """Adds the sum of two attentions, then the sum of two MLPs, each on its own normalised tokens.

    Reference: timm's ParallelThingsBlock; arXiv 2203.09795.
    """

    config: ViTConfig
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Any = PRECISION

    def setup(self) -> None:
        """Builds the branches."""
        runtime = (self.dtype, self.param_dtype, self.precision)
        self.attns = [Branch(self.config, "attn", *runtime) for _ in range(NUM_PARALLEL)]
        self.ffns = [Branch(self.config, "mlp", *runtime) for _ in range(NUM_PARALLEL)]

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns the tokens after both residual steps."""
        x = x + sum(branch(x) for branch in self.attns)
        return x + sum(branch(x) for branch in self.ffns)


class Branch(nn.Module):
    """Norm, attention or MLP, LayerScale."""

    config: ViTConfig
    layer: str  # 'attn' or 'mlp'
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Any = PRECISION

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns what the branch adds."""
        cfg = self.config
        runtime = {"dtype": self.dtype, "param_dtype": self.param_dtype, "precision": self.precision}
        x = NORM_LAYERS[cfg.norm_layer](cfg.norm_eps, self.param_dtype, name="norm")(x)
        build = build_attention if self.layer == "attn" else build_mlp
        x = build(cfg, name=self.layer, **runtime)(x)
        return x if cfg.init_values is None else LayerScale(cfg.init_values, self.param_dtype, name="ls")(x)
