"""Configs of monocular depth models: a Vision Transformer under a DPT neck and head, or under a linear head."""

from __future__ import annotations

import dataclasses

from vit_flax.config.checks import require_choice, require_int
from vit_flax.config.field_types import check_types
from vit_flax.config.vit import ViTConfig

DEPTH_TYPES = ("relative", "metric")
FACTORS = (0.25, 0.5, 1, 2, 3, 4, 8)  # of what a grid of patches is enlarged


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthConfig:
    """Depth Anything and its second version; arXiv 2401.10891, 2406.09414.

    Raises:
        ValueError: a value is out of range, or two do not fit each other.
    """

    backbone: ViTConfig
    layers: tuple[int, ...]  # the blocks whose tokens the neck reads, counted from 0
    factors: tuple[float, ...] = (4, 2, 1, 0.5)  # each grid is enlarged by, before grids are joined
    neck_sizes: tuple[int, ...] = (48, 96, 192, 384)  # channels of each grid
    fusion_size: int = 64  # channels of what they are joined to
    head_size: int = 32  # channels before the last layer
    depth_type: str = "relative"  # 'metric': the last activation is a sigmoid
    max_depth: float = 1.0  # what is multiplied by in the end

    def __post_init__(self) -> None:
        """Checks every value."""
        for name in ("layers", "factors", "neck_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_types(self)
        counts = {name: len(getattr(self, name)) for name in ("layers", "factors", "neck_sizes")}
        if len(set(counts.values())) != 1 or not self.layers:
            raise ValueError(f"layers, factors and neck_sizes must be as many, got {counts}")
        _check_backbone(self.backbone, self.layers)
        for factor in self.factors:
            if factor not in FACTORS:
                raise ValueError(f"factors must be of {FACTORS}, got {factor!r}")
        for name in ("fusion_size", "head_size"):
            require_int(name, getattr(self, name), minimum=1)
        require_choice("depth_type", self.depth_type, DEPTH_TYPES)
        if self.fusion_size % 2:
            raise ValueError(f"fusion_size must be even, got {self.fusion_size}")
        if not self.max_depth > 0:
            raise ValueError(f"max_depth must be positive, got {self.max_depth!r}")

    def replace(self, **changes: object) -> DepthConfig:
        """Returns a copy with other values."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearDepthConfig:
    """A backbone under one of DINOv2's linear depth heads; arXiv 2304.07193, section 7.4.

    Raises:
        ValueError: a value is out of range, or two do not fit each other.
    """

    backbone: ViTConfig
    layers: tuple[int, ...]  # the blocks whose tokens are concatenated, counted from 0
    max_depth: float  # the farthest bin in metres: 10 for heads trained on NYU Depth v2, 80 for KITTI
    min_depth: float = 0.001  # the nearest bin in metres
    bins: int = 256  # number of depth bins, uniformly spaced
    upsample: int = 4  # estimates along each side of a patch
    resample: str = "bicubic"  # how position embeddings are resized for other image sizes, a mode of models.resample

    depth_type = "metric"

    def __post_init__(self) -> None:
        """Checks every value."""
        object.__setattr__(self, "layers", tuple(self.layers))
        check_types(self)
        if not self.layers:
            raise ValueError("layers is empty: name a block")
        _check_backbone(self.backbone, self.layers)
        if not self.backbone.class_token:
            raise ValueError("the backbone has no class token, which a linear depth head reads beside every patch")
        require_int("bins", self.bins, minimum=2)
        require_int("upsample", self.upsample, minimum=1)
        if not 0 <= self.min_depth < self.max_depth:
            raise ValueError(f"depths must count up from 0, got min_depth={self.min_depth}, max_depth={self.max_depth}")

    def replace(self, **changes: object) -> LinearDepthConfig:
        """Returns a copy with other values."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


def _check_backbone(backbone: ViTConfig, layers: tuple[int, ...]) -> None:
    inside = all(0 <= layer < backbone.depth for layer in layers)
    if not inside or list(layers) != sorted(set(layers)):
        raise ValueError(f"layers must count up within the {backbone.depth} blocks, got {layers}")
    if backbone.num_classes:
        raise ValueError("the backbone of a depth model has no classifier: num_classes=0")
