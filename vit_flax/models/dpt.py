"""DPT: a neck that fuses feature maps of several blocks, and a depth head."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from vit_flax.config.dense import DepthConfig
from vit_flax.models.feature_maps import Convolution, Enlargement, resize_maps
from vit_flax.models.precision import Precision

FeatureMap = Float[Array | np.ndarray, "b _ _ _"]  # (B, H, W, C)


class Reassemble(nn.Module):
    """Projects a feature map and resizes it.

    Reference: transformers' DepthAnythingReassembleLayer.
    """

    features: int
    factor: float
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the two layers."""
        self.projection = Convolution(self.features, 1, precision=self.precision)
        if self.factor > 1:
            self.resize = Enlargement(self.features, int(self.factor), self.precision)
        elif self.factor < 1:
            self.resize = Convolution(self.features, 3, int(1 / self.factor), precision=self.precision)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """Returns the resized feature map."""
        x = self.projection(x)
        return x if self.factor == 1 else self.resize(x)


class Residual(nn.Module):
    """The residual convolution unit: two convolutions, each after a ReLU, with a skip.

    Reference: transformers' DepthAnythingPreActResidualLayer.
    """

    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        """Returns the feature map."""
        out = x
        for name in ("convolution1", "convolution2"):
            out = Convolution(x.shape[-1], precision=self.precision, name=name)(jax.nn.relu(out))
        return x + out


class Fusion(nn.Module):
    """Fuses a feature map with the coarser fused one, and upsamples the sum.

    Reference: transformers' DepthAnythingFeatureFusionLayer.
    """

    features: int
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the layers."""
        self.projection = Convolution(self.features, 1, precision=self.precision)
        self.residual_layer1 = Residual(self.precision)
        self.residual_layer2 = Residual(self.precision)

    def __call__(self, x: FeatureMap, other: FeatureMap | None, size: tuple[int, int]) -> FeatureMap:
        """Returns the fused map in the given size; the first layer has nothing to fuse, yet the same parameters."""
        if other is not None or self.is_initializing():
            grid = (x.shape[1], x.shape[2])
            own = self.residual_layer1(x if other is None else resize_maps(other, grid, corners=False))
            x = x if other is None else x + own
        return self.projection(resize_maps(self.residual_layer2(x), size, corners=True))


class DptNeck(nn.Module):
    """Fuses feature maps from the last to the first, each twice as large as the one before.

    Reference: transformers' DepthAnythingNeck; arXiv 2103.13413.
    """

    config: DepthConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds a reassemble layer, a convolution and a fusion layer for each feature map."""
        cfg, policy = self.config, self.precision
        pairs = zip(cfg.neck_sizes, cfg.factors, strict=True)
        self.reassemble = [Reassemble(size, factor, policy) for size, factor in pairs]
        self.convs = [Convolution(cfg.fusion_size, use_bias=False, precision=policy) for _ in cfg.layers]
        self.fusion = [Fusion(cfg.fusion_size, policy) for _ in cfg.layers]

    def __call__(self, grids: Sequence[FeatureMap]) -> FeatureMap:
        """Returns the fused feature map."""
        made = zip(self.reassemble, self.convs, grids, strict=True)
        grids = [conv(reassemble(grid)) for reassemble, conv, grid in made][::-1]
        joined = None
        for number, (grid, fusion) in enumerate(zip(grids, self.fusion, strict=True)):
            height, width = (grid if joined is None else joined).shape[1:3]
            size = grids[number + 1].shape[1:3] if number + 1 < len(grids) else (2 * height, 2 * width)
            joined = fusion(grid, None, size) if joined is None else fusion(joined, grid, size)
        assert joined is not None
        return joined


class DepthHead(nn.Module):
    """Predicts depth from a feature map, upsampled to the image.

    Reference: transformers' DepthAnythingDepthEstimationHead.
    """

    config: DepthConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the three convolutions."""
        cfg = self.config
        self.conv1 = Convolution(cfg.fusion_size // 2, precision=self.precision)
        self.conv2 = Convolution(cfg.head_size, precision=self.precision)
        self.conv3 = Convolution(1, 1, precision=self.precision)

    def __call__(self, grid: FeatureMap, size: tuple[int, int]) -> Float[Array, "b h w"]:
        """Returns the depth of images of `size`."""
        cfg = self.config
        x = jax.nn.relu(self.conv2(resize_maps(self.conv1(grid), size, corners=True)))
        last = jax.nn.relu if cfg.depth_type == "relative" else jax.nn.sigmoid
        return last(self.conv3(x))[..., 0] * cfg.max_depth
