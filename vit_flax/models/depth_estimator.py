"""Depth Anything: a Vision Transformer under a DPT neck and head."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.config.dense import DepthConfig
from vit_flax.models.dpt import DepthHead, DptNeck
from vit_flax.models.precision import HIGHEST, Precision
from vit_flax.models.vision_transformer import VisionTransformer


class DepthEstimator(nn.Module):
    """Estimates depth: relative (larger is nearer) or metric, in metres.

    Reference: transformers' DepthAnythingForDepthEstimation.
    """

    config: DepthConfig
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = HIGHEST

    def setup(self) -> None:
        """Builds the three parts."""
        policy = Precision.of(self.dtype, self.param_dtype, self.precision).wide
        self.backbone = VisionTransformer(self.config.backbone, self.dtype, self.param_dtype, self.precision)
        self.neck = DptNeck(self.config, policy)
        self.head = DepthHead(self.config, policy)

    def __call__(self, images: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b i j"]:
        """Returns the depth of normalised images, of the size of their whole patches."""
        cfg = self.config
        layers = list(cfg.layers)
        grids: Any = self.backbone.forward_intermediates(
            images, layers, norm=True, stop_early=True, intermediates_only=True
        )
        (rows, columns), (height, width) = cfg.backbone.grid_size, cfg.backbone.patch_size
        return self.head(self.neck(grids), (rows * height, columns * width))
