"""The type of a preset, and values that most rows of the tables share."""

from __future__ import annotations

import dataclasses
from typing import Any, Generic, TypeVar

from vit_flax.config import ModelConfig, ViTConfig

Config = TypeVar("Config", bound=ModelConfig)

Triple = tuple[float, float, float]
Normalisation = tuple[Triple, Triple]

INCEPTION: Normalisation = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET: Normalisation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP: Normalisation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
UNIT: Normalisation = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Classes, preprocessing, licence and source of published weights."""

    num_classes: int
    normalisation: Normalisation
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    licence: str = "apache-2.0"
    source: str | None = "timm"  # 'timm': timm's repository of that name on the Hugging Face hub


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset(Generic[Config]):
    """A named configuration, with the preprocessing, source and licence of the weights published under that name."""

    config: Config
    mean: Triple | None = None  # per channel, of pixels in 0..1; None: not published
    std: Triple | None = None
    crop_pct: float = 1.0  # side of the centre crop over the shorter side of the resized image
    interpolation: str = "bicubic"
    crop_mode: str = "center"  # 'squash': resizing to the model's size that ignores the aspect ratio
    source: str | None = None  # repository on the Hugging Face hub, or an address; None: no published weights
    licence: str | None = None  # of the weights


def vit(width: int, depth: int, heads: int, patch: int, image: int, **fields: object) -> ViTConfig:
    """Returns the config of a row; `fields` are those that differ from a plain ViT."""
    size = {"patch_size": (patch, patch), "image_size": (image, image)}
    return ViTConfig(embed_dim=width, depth=depth, num_heads=heads, **size, **fields)


def weights(num_classes: int, normalisation: Normalisation, crop_pct: float = 0.9, **fields: Any) -> Weights:
    """Returns the weights of a row."""
    return Weights(num_classes=num_classes, normalisation=normalisation, crop_pct=crop_pct, **fields)


def without(part: str, published: dict[str, Weights]) -> dict[str, Weights]:
    """Returns the rows with their source in timm's repository whose name lacks `part`."""
    return {name: dataclasses.replace(row, source=f"timm/{name.replace(part, '')}") for name, row in published.items()}


def collect(configs: dict[str, ViTConfig], published: dict[str, Weights]) -> dict[str, Preset[ViTConfig]]:
    """Returns a preset for every `architecture.weights`, and one for every architecture: that of its first weights."""
    presets: dict[str, Preset[ViTConfig]] = {}
    for name, row in published.items():
        architecture = name.split(".")[0]
        mean, std = row.normalisation
        preset = Preset(
            config=configs[architecture].replace(num_classes=row.num_classes),
            mean=mean,
            std=std,
            crop_pct=row.crop_pct,
            interpolation=row.interpolation,
            crop_mode=row.crop_mode,
            source=f"timm/{name}" if row.source == "timm" else row.source,
            licence=row.licence,
        )
        presets.setdefault(architecture, preset)
        presets[name] = preset
    return presets
