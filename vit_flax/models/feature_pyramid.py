"""The feature pyramid network (FPN) over the stages of a trunk."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.models.feature_maps import Convolution
from vit_flax.models.placed import reshape
from vit_flax.models.precision import Precision


class FeaturePyramid(nn.Module):
    """Projects every stage's feature map to the same channels, and adds upsampled coarser maps to finer ones.

    Reference: transformers' Sam2VisionNeck; Meta's sam2.modeling.backbones.image_encoder.FpnNeck (its defaults: sums,
    nearest neighbours); arXiv 1612.03144.
    """

    features: int
    grids: tuple[tuple[int, int], ...]  # grid of every stage, from fine to coarse
    top_down: tuple[int, ...]  # stages whose maps the coarser map is added to
    levels: int  # number of returned maps, from the finest on
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds a convolution for each stage, from fine to coarse."""
        self.convs = [Convolution(self.features, 1, precision=self.precision) for _ in self.grids]

    def __call__(self, stages: Sequence[Float[Array, "b _ _"]]) -> list[Float[Array, "b h w c"]]:
        """Returns feature maps, from fine to coarse, of the output tokens of each stage."""
        maps: list[Array] = []  # from coarse to fine
        for stage in reversed(range(len(self.grids))):
            tokens, (height, width) = stages[stage], self.grids[stage]
            own = self.convs[stage](reshape(tokens, tokens.shape[0], height, width, tokens.shape[-1]))
            if maps and stage in self.top_down:
                own = own + jnp.repeat(jnp.repeat(maps[-1], 2, axis=1), 2, axis=2)
            maps.append(own)
        return maps[::-1][: self.levels]
