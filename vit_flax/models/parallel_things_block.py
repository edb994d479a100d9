"""The transformer block of two parallel attentions, then two parallel MLPs."""

import flax.linen as nn
from jaxtyping import Array, Float

from vit_flax.config import NO_DROPS, DropRates, ViTConfig
from vit_flax.models.block import build_attention, build_mlp
from vit_flax.models.drop import drop_path
from vit_flax.models.layer_scale import LayerScale
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.precision import Precision

NUM_PARALLEL = 2


class ParallelThingsBlock(nn.Module):
    """Adds the sum of two attentions, then the sum of two MLPs, each on its own normalised tokens.

    Reference: timm's ParallelThingsBlock; arXiv 2203.09795.
    """

    config: ViTConfig
    precision: Precision = Precision()
    drop: DropRates = NO_DROPS
    drop_path: float | Array = 0.0
    index: int = 0  # the block's place, from 0

    def setup(self) -> None:
        """Builds the branches."""
        runtime = (self.precision, self.drop, self.drop_path)
        self.attns = [Branch(self.config, "attn", *runtime) for _ in range(NUM_PARALLEL)]
        self.ffns = [Branch(self.config, "mlp", *runtime) for _ in range(NUM_PARALLEL)]

    def __call__(self, x: Float[Array, "b n d"], given: None = None) -> Float[Array, "b n d"]:
        """Returns the tokens after both residual steps."""
        x = x + sum(branch(x) for branch in self.attns)
        return x + sum(branch(x) for branch in self.ffns)


class Branch(nn.Module):
    """Norm, attention or MLP, LayerScale."""

    config: ViTConfig
    layer: str  # 'attn' or 'mlp'
    precision: Precision = Precision()
    drop: DropRates = NO_DROPS
    drop_path: float | Array = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns the residual branch."""
        cfg = self.config
        x = NORM_LAYERS[cfg.norm_layer](cfg.norm_eps, self.precision, name="norm")(x)
        build = build_attention if self.layer == "attn" else build_mlp
        x = build(cfg, self.precision, self.drop, name=self.layer)(x)
        if cfg.init_values is not None:
            x = LayerScale(cfg.init_values, self.precision, name="ls")(x)
        return drop_path(self, x, self.drop_path)
