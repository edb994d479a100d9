"""The neck after the blocks of a trunk: two convolutions to fewer channels."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from vit_flax.models.feature_maps import Convolution
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.placed import reshape
from vit_flax.models.precision import Precision

_EPSILON = 1e-6  # independent of the blocks' epsilon


class Neck(nn.Module):
    """Convolves the grid of tokens twice, with kernels of 1 and of 3 patches, each followed by a LayerNorm.

    Without features it is a LayerNorm alone.

    Reference: timm's VisionTransformerSAM.neck; transformers' SamVisionNeck; arXiv 2304.02643.
    """

    features: int
    grid_size: tuple[int, int]
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the layers."""
        if not self.features:
            self.norm = NORM_LAYERS["layernorm"](_EPSILON, self.precision)
            return
        self.conv1 = Convolution(self.features, 1, use_bias=False, precision=self.precision)
        self.norm1 = NORM_LAYERS["layernorm"](_EPSILON, self.precision)
        self.conv2 = Convolution(self.features, 3, use_bias=False, precision=self.precision)
        self.norm2 = NORM_LAYERS["layernorm"](_EPSILON, self.precision)

    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n c"]:
        """Returns the tokens with `features` channels, or with their own without features."""
        if not self.features:
            return self.norm(tokens)
        grid = reshape(tokens, tokens.shape[0], *self.grid_size, tokens.shape[-1])
        grid = self.norm2(self.conv2(self.norm1(self.conv1(grid))))
        return reshape(grid, tokens.shape[0], -1, self.features)
