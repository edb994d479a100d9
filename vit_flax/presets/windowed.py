"""Backbones with window attention: the image encoders of SAM and SAM 3, ViTDet."""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_flax.config import ViTConfig, WindowedRopeViTConfig, WindowedViTConfig
from vit_flax.presets.huggingface import SQUASHED, row
from vit_flax.presets.preset import IMAGENET, INCEPTION, Preset, Weights, collect, weights


def _sam(width: int, depth: int, heads: int, last: int, **fields: Any) -> ViTConfig:
    """Returns the encoder whose every `last`-th block has global attention."""
    return WindowedViTConfig(
        embed_dim=width, depth=depth, num_heads=heads, image_size=(1024, 1024), patch_size=(16, 16), num_classes=0,
        window_size=14, global_attn_indexes=tuple(range(last - 1, depth, last)), neck_chans=256, **fields,
    )  # fmt: skip


_SIZES = {"base": (768, 12, 12, 3), "large": (1024, 24, 16, 6), "huge": (1280, 32, 16, 8)}  # width, depth, heads, last

# timm's norms have torch's default epsilon, 1e-5; Meta's and transformers' have 1e-6
_CONFIGS = {f"samvit_{name}_patch16": _sam(*size, norm_eps=1e-5) for name, size in _SIZES.items()}
_WEIGHTS: dict[str, Weights] = {f"{name}.sa1b": weights(0, IMAGENET, 1.0) for name in _CONFIGS}
WINDOWED_MODELS = collect(_CONFIGS, _WEIGHTS)

WINDOWED_MODELS["samvit_base_patch16_224"] = Preset(
    config=_CONFIGS["samvit_base_patch16"].replace(
        image_size=(224, 224), pos_embed="none", neck_chans=0, num_classes=1000
    ),
    mean=IMAGENET[0],
    std=IMAGENET[1],
    crop_pct=0.9,
)

# detectron2's, with a position table for images of 224 pixels; its weights are parts of detectors
_VITDET: dict[str, Any] = {"global_pool": "none", "pos_embed_grid": (14, 14), "pos_embed_class_row": True}
VITDET_MODELS = {
    f"vitdet_{name}_patch16_1024": Preset(config=_sam(*size, **_VITDET).replace(neck_chans=None))
    for name, size in _SIZES.items()
}

_SAM3 = WindowedRopeViTConfig(
    embed_dim=1024, depth=32, num_heads=16, mlp_ratio=4736 / 1024, image_size=(1008, 1008), patch_size=(14, 14),
    num_classes=0, window_size=24, global_attn_indexes=(7, 15, 23, 31), pos_embed_grid=(24, 24), pos_embed_fit="tiled",
    global_pool="none",
)  # fmt: skip
_PADDED: dict[str, Any] = {"crop_mode": "pad", "interpolation": "bilinear"}
# Meta's weights, whose norms have torch's epsilon, and whose position table has a row of a class token
SAM3_MODELS = {
    "sam3_large_patch14_1008": row(_SAM3.replace(norm_eps=1e-5, pos_embed_class_row=True), INCEPTION, None, **SQUASHED)
}
SAM_ENCODERS: dict[str, Preset] = {
    **{
        name: dataclasses.replace(row(_sam(*size, global_pool="none"), IMAGENET, **_PADDED), source=name)
        for size, name in ((size, f"facebook/sam-vit-{name}") for name, size in _SIZES.items())
    },
    "facebook/sam3": dataclasses.replace(row(_SAM3, INCEPTION, None, **SQUASHED), source="facebook/sam3"),
}
