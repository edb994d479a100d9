"""SAM 2's image encoders: timm's HieraDet, and transformers' with the neck."""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_flax.config import HieraViTConfig, ViTConfig
from vit_flax.presets.huggingface import SQUASHED, row
from vit_flax.presets.preset import IMAGENET, Preset, Weights, collect, weights


def _hiera(width: int, heads: int, stages: tuple[int, ...], whole: tuple[int, ...], **fields: Any) -> ViTConfig:
    """Returns the trunk whose widths and heads double from stage to stage; the `whole` blocks have global attention."""
    doubled = [2**stage for stage in range(len(stages))]
    return HieraViTConfig(
        embed_dim=width, num_heads=heads, depth=sum(stages), stages=stages, global_attn_indexes=whole,
        stage_dims=tuple(width * n for n in doubled), stage_heads=tuple(heads * n for n in doubled), **fields,
    )  # fmt: skip


_TIMM: dict[str, Any] = {"final_norm": True, "fc_norm": True, "global_pool": "avg", "num_classes": 0}
_WIDE: dict[str, Any] = {"window_sizes": (8, 4, 16, 8)}
_SMALL = (96, 1, (1, 2, 11, 2), (7, 10, 13))
# width, heads, stages, blocks that see all; what else differs
_SIZES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "tiny": ((96, 1, (1, 2, 7, 2), (5, 7, 9)), {}),
    "small": (_SMALL, {}),
    "base_plus": ((112, 2, (2, 3, 16, 3), (12, 16, 20)), {"pos_embed_grid": (14, 14)}),
    "large": ((144, 2, (2, 6, 36, 4), (23, 33, 43)), _WIDE),
}
_SIDES = {"large": 1024}  # of timm's images; else 896
_TRAINED = {
    f"sam2_hiera_{name}": _hiera(*size, image_size=(_SIDES.get(name, 896),) * 2, **_TIMM, **more)
    for name, (size, more) in _SIZES.items()
}
_CONFIGS = {**_TRAINED, "hieradet_small": _hiera(*_SMALL, **_WIDE, image_size=(256, 256), init_values=1e-5, **_TIMM)}
_WEIGHTS: dict[str, Weights] = {
    f"{name}.fb_r{config.image_size[0]}{version}": weights(0, IMAGENET, 1.0)
    for name, config in _TRAINED.items()
    for version in ("", "_2pt1")
}
_UNTRAINED = {"hieradet_small.untrained": dataclasses.replace(weights(1000, IMAGENET, 1.0), source=None)}
HIERA_MODELS = collect(_CONFIGS, _WEIGHTS | _UNTRAINED)

# images are resized to a square without regard to the aspect ratio
SAM2_ENCODERS: dict[str, Preset] = {
    f"facebook/sam2{version}-hiera-{name.replace('_', '-')}": dataclasses.replace(
        row(_hiera(*size, neck_chans=256, global_pool="none", **more), IMAGENET, **SQUASHED),
        source=f"facebook/sam2{version}-hiera-{name.replace('_', '-')}",
    )
    for version in ("", ".1")
    for name, (size, more) in _SIZES.items()
}
