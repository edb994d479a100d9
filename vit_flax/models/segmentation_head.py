"""A linear head for semantic segmentation, on features that are normalised over the batch first."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_flax.models.feature_maps import Convolution
from vit_flax.models.precision import Precision

STATISTICS = "batch_stats"  # the collection of running statistics
MOMENTUM, EPSILON = 0.1, 1e-5  # torch's


class BatchNorm(nn.Module):
    """Batch normalisation: by the batch's statistics in training, by running ones in evaluation.

    Reference: torch.nn.BatchNorm2d.
    """

    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        """Returns the normalised feature map; in training updates `STATISTICS`, if mutable."""
        x = jnp.asarray(x)
        shape, dtype = x.shape[-1:], self.precision.params
        mean = self.variable(STATISTICS, "mean", jnp.zeros, shape, dtype)
        var = self.variable(STATISTICS, "var", jnp.ones, shape, dtype)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        centre, spread = mean.value, var.value
        if train:
            centre, spread = x.mean((0, 1, 2)), x.var((0, 1, 2))
            if self.is_mutable_collection(STATISTICS) and not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = spread * (count / max(count - 1, 1))
                mean.value = (1 - MOMENTUM) * mean.value + MOMENTUM * centre
                var.value = (1 - MOMENTUM) * var.value + MOMENTUM * unbiased
        return (x - centre) * scale / jnp.sqrt(spread + EPSILON) + bias


class SegmentationHead(nn.Module):
    """Classifies every patch: batch norm and a linear layer of its token.

    Reference: BNHead of DINOv2's evaluation of semantic segmentation, arXiv 2304.07193.
    """

    num_classes: int
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the two layers, with DINOv2's names."""
        self.bn = BatchNorm(self.precision)
        self.conv_seg = Convolution(self.num_classes, 1, precision=self.precision)

    def __call__(self, grids: Float[Array | np.ndarray, "b h w c"], train: bool = False) -> Float[Array, "b h w k"]:
        """Returns the logits of patches."""
        return self.conv_seg(self.bn(grids, train))
