"""Hugging Face's TIPSv2, the image tower: DINOv2 with registers, resized another way.

Files have the names of DINOv2's own, inside `vision_encoder.`; memory those that transformers 5 has for DINOv2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.facebook import DINOV2
from vit_flax.convert.gated_width import integer_ratio
from vit_flax.convert.huggingface_dinov2 import DINOV2_FAMILIES, DINOV2_LAYOUTS
from vit_flax.convert.layout import Layout
from vit_flax.convert.rules import Drop, Rule

_BESIDE = (
    Drop("text_encoder.{rest}", "the text tower's"),
    Drop("text_model.{rest}", "the text tower's"),
    Drop("temperature", "of the similarity of images and texts"),
)
_DINOV2_MEMORY = next(layout for layout in DINOV2_LAYOUTS if layout.name == "huggingface_dinov2_memory")
_DINOV2_FAMILY = DINOV2_FAMILIES["dinov2_with_registers"]


def _with_text(dinov2: Layout, config: ViTConfig) -> tuple[Rule | Drop, ...]:
    return (*dinov2.rules(config), *_BESIDE)


def _write(config: ViTConfig) -> dict[str, Any]:
    assert _DINOV2_MEMORY.config_file is not None
    values = {**_DINOV2_MEMORY.config_file(config), "mlp_ratio": integer_ratio(config) or config.mlp_ratio}
    values.pop("use_mask_token", None)
    names = {"architectures": ["Tipsv2VisionModel"], "model_type": "tipsv2_vision_model"}
    return {**values, **names, "num_register_tokens": config.reg_tokens}


def _conditions(config: ViTConfig) -> list[str]:
    # it holds any ratio, but for gated MLPs
    return [line for line in _DINOV2_MEMORY.conditions(config) if config.mlp_layer != "mlp" or "mlp_ratio=" not in line]


_FIXED: Mapping[str, tuple[Any, ...]] = {
    **_DINOV2_MEMORY.fixed, "num_classes": (0,), "global_pool": ("token",), "mask_token": (True,),
    "no_embed_reg": (True,),
}  # fmt: skip

_MEMORY = dataclasses.replace(
    _DINOV2_MEMORY,
    name="huggingface_tipsv2_memory",
    description="Hugging Face's TIPSv2, as transformers 5 has it in memory",
    evidence=hf.ending("vision_model.encoder.layer.0.layer_scale1.lambda1"),
    rules=lambda config: _with_text(_DINOV2_MEMORY, config),
    fixed=_FIXED,
    conditions=_conditions,
    resample=lambda config: "bilinear_antialias",
    prefixes=("vision_model.",),
    prefix=lambda config: "",
    outside=(),
    heads=(),
    config_file=_write,
)
_FILES = dataclasses.replace(
    DINOV2,
    name="huggingface_tipsv2",
    description="Hugging Face's TIPSv2, as its files have it",
    evidence=hf.ending("vision_encoder.blocks.0.ls1.gamma"),
    belongs=hf.ending("blocks.0.ls1.gamma", "register_tokens"),
    rules=lambda config: _with_text(DINOV2, config),
    fixed=_FIXED,
    conditions=_conditions,
    resample=lambda config: "bilinear_antialias",
    # what transformers 5 saves, and what was published
    aliases=(
        ("blocks.{i}.mlp.c_fc.{part}", "blocks.{i}.mlp.fc1.{part}"),
        ("blocks.{i}.mlp.c_proj.{part}", "blocks.{i}.mlp.fc2.{part}"),
    ),
    prefixes=("vision_encoder.",),
    prefix=lambda config: "vision_encoder.",
    config_file=_write,
)
TIPSV2_LAYOUTS: tuple[Layout, ...] = (_FILES, _MEMORY)

_FAMILY = dataclasses.replace(
    _DINOV2_FAMILY,
    layout=_FILES.name,
    defaults={**_DINOV2_FAMILY.defaults, "image_size": 448},
    part="vision_config",
)
TIPSV2_FAMILIES: dict[str, Family] = {"tipsv2": _FAMILY, "tipsv2_vision_model": _FAMILY}
