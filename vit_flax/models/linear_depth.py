"""DINOv2's linear depth estimation: a linear layer from tokens of a Vision Transformer to scores of depth bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.config.dense import LinearDepthConfig
from vit_flax.models.feature_maps import Convolution, resize_maps
from vit_flax.models.precision import HIGHEST, Precision
from vit_flax.models.vision_transformer import VisionTransformer

_LEAST = 0.1  # added to every score, so that no bin has weight 0


class LinearDepthHead(nn.Module):
    """Estimates depth as the mean of the depth bins, weighted by their scores.

    Reference: BNHead of DINOv2's evaluation of depth (classify=True, bins_strategy="UD", norm_strategy="linear").
    """

    config: LinearDepthConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the linear layer, with DINOv2's name."""
        self.conv_depth = Convolution(self.config.bins, 1, precision=self.precision)

    def __call__(self, grids: Sequence[tuple[Array, Array]]) -> Float[Array, "b i j"]:
        """Returns the depth in metres, `upsample` estimates along each side of a patch.

        Args:
            grids: of each layer the patches (B, H, W, D) and the prefix tokens (B, P, D), the class token first.
        """
        cfg = self.config
        parts = []
        for patches, prefix in grids:
            parts += [patches, jnp.broadcast_to(prefix[:, None, :1], patches.shape)]
        # (B, H, W, bins): upsampling commutes with a 1x1 convolution, and is cheaper after it
        scores = self.conv_depth(jnp.concatenate(parts, -1))
        size = (cfg.upsample * scores.shape[1], cfg.upsample * scores.shape[2])
        scores = jax.nn.relu(resize_maps(scores, size, corners=False)) + _LEAST
        bins = jnp.asarray(np.linspace(cfg.min_depth, cfg.max_depth, cfg.bins), scores.dtype)
        return jnp.matmul(scores, bins, precision=lax.Precision.HIGHEST) / scores.sum(-1)


class LinearDepthEstimator(nn.Module):
    """Estimates metric depth with a linear head on the tokens of some blocks, before the final norm.

    Reference: DINOv2's hub models dinov2_vits14_ld to dinov2_vitg14_ld (DepthEncoderDecoder).
    """

    config: LinearDepthConfig
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = HIGHEST

    def setup(self) -> None:
        """Builds backbone and head."""
        policy = Precision.of(self.dtype, self.param_dtype, self.precision).wide
        self.backbone = VisionTransformer(self.config.backbone, self.dtype, self.param_dtype, self.precision)
        self.head = LinearDepthHead(self.config, policy)

    def __call__(self, images: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b i j"]:
        """Returns the depth of normalised images, `upsample` estimates along each side of a patch."""
        layers = list(self.config.layers)
        grids: Any = self.backbone.forward_intermediates(
            images, layers, return_prefix_tokens=True, stop_early=True, intermediates_only=True
        )
        return self.head(grids)
