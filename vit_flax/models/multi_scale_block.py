"""The multi-scale transformer block, which pools and widens tokens at the first block of a stage."""

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from vit_flax.models.block import Block
from vit_flax.models.linear import Linear


class MultiScaleBlock(Block):
    """Adds attention, then an MLP, each on normalised tokens; at the first block of a stage both are of its width.

    There the normalised tokens are projected for the residual path too, and where attention pools its queries, so are
    they.

    Reference: timm.models.hieradet_sam2.MultiScaleBlock; transformers' Sam2MultiScaleBlock; arXiv 2306.00989.
    """

    def setup(self) -> None:
        """Builds the layers."""
        super().setup()
        cfg, width = self.config, self.config.dim_before(self.index + 1)
        self.proj = Linear(width, precision=self.precision) if cfg.dim_before(self.index) != width else None

    def __call__(self, x: Float[Array, "b n d"], given: Array | np.ndarray | None = None) -> Float[Array, "b m e"]:
        """Returns the tokens after both residual steps."""
        normed = self.norm1(x)
        shortcut = x if self.proj is None else self.attn.position.pool(self.proj(normed))
        x = shortcut + self._drop_path(self._scaled("ls1", self.attn(normed, given)))
        return x + self._drop_path(self._scaled("ls2", self.mlp(self.norm2(x))))

    @nn.nowrap
    def _scaled(self, name: str, branch: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return branch if self.config.init_values is None else getattr(self, name)(branch)
