"""Hugging Face's SAM 3: the trunk of its image encoder, beside the rest or alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_flax.config import ViTConfig, WindowedRopeViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.layout import Layout, Shapes, vote
from vit_flax.convert.rules import CONV, ConversionError, Rule
from vit_flax.convert.timm_blocks import norm
from vit_flax.convert.timm_sam import with_norm

_NAMES = hf.Names(
    "layers.{i}", "layer_norm1", "layer_norm2", "attention.q_proj", "attention.k_proj", "attention.v_proj",
    "attention.o_proj", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
_KERNEL = "embeddings.patch_embeddings.projection.weight"
_TABLE = "embeddings.position_embeddings"
THETA = 10000.0
TRUNK = {"pre_norm": True, "patch_bias": False, "final_norm": False, "pos_embed_fit": "tiled", "global_pool": "none"}


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    return (
        Rule(_TABLE, "pos_embed"),
        Rule(_KERNEL, "patch_embed/proj/kernel", CONV),
        *norm("layer_norm", "norm_pre"),
        *hf.block_rules(_NAMES),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    side = math.isqrt(vote(shapes, (_TABLE, 1)) or 0)  # it has no other grid
    values = {**hf.block_infer(shapes, _NAMES), **hf.patch_infer(shapes, _KERNEL), **TRUNK, "num_classes": 0}
    return {**values, "pos_embed_grid": (side, side)} if side else values


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    rope = attributes["rope_parameters"] or {}
    if set(rope) - {"rope_theta", "rope_type"} or rope.get("rope_type", "axial") != "axial":
        raise ConversionError(f"rope_parameters={rope}: only rope_theta of rope_type 'axial' is followed")
    blocks = attributes["global_attn_indexes"]
    return {
        **hf.read(attributes),
        **hf.read_sizes(attributes),
        **hf.read_mlp(attributes),
        "window_size": attributes["window_size"],
        "global_attn_indexes": (7, 15, 23, 31) if blocks is None else tuple(blocks),
        "rope_theta": float(rope.get("rope_theta", THETA)),
    }


def _write(config: ViTConfig) -> dict[str, Any]:
    grid = config.pos_embed_grid or config.grid_size
    return {
        "architectures": ["Sam3ViTModel"],
        "model_type": "sam3_vit_model",
        **hf.write(config),
        **hf.write_sizes(config),
        **hf.write_mlp(config),
        "pretrain_image_size": grid[0] * config.patch_size[0],
        "window_size": config.window_size,
        "global_attn_indexes": list(config.global_attn_indexes),
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "axial"},
    }


def _conditions(config: ViTConfig) -> list[str]:
    lines, grid = hf.conditions(config) + hf.square(config), config.pos_embed_grid
    return lines + [f"pos_embed_grid={grid} (it holds squares)"] * (not grid or grid[0] != grid[1])


SAM3_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="huggingface_sam3",
        description="Hugging Face's SAM 3: the trunk of its image encoder",
        config_class=WindowedRopeViTConfig,
        evidence=hf.ending(f"{_NAMES.block.format(i=0)}.{_NAMES.out}.weight", _TABLE, "layer_norm.weight"),
        infer=_infer,
        rules=_rules,
        required=(*hf.REQUIRED, ("window_size", "global_attn_indexes", "rope_theta")),
        defaults=lambda known: {},
        fixed=hf.fixed(
            "window_size", "global_attn_indexes", "rope_theta", "pos_embed_grid",
            config_class=WindowedRopeViTConfig, qkv_bias=(True,), num_classes=(0,),
            **{name: (value,) for name, value in TRUNK.items()},
        ),
        components=lambda config: (*hf.block_components(_NAMES, ""), ("layer_norm", "norm_pre")),
        conditions=_conditions,
        hint=hf.HINT,
        classifier=with_norm,
        config_file=_write,
    ),
)  # fmt: skip
_SAM3 = Family(
    layout="huggingface_sam3",
    defaults={
        **hf.SIZES, "hidden_size": 1024, "intermediate_size": 4736, "num_hidden_layers": 32, "num_attention_heads": 16,
        "image_size": 1008, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "window_size": 24,
        "global_attn_indexes": None, "rope_parameters": None,
    },
    fields=_read,
    only={"layer_scale_init_value": (None,), "default_rope_type": ("axial",)},
    harmless=(*hf.HARMLESS, "pretrain_image_size", "hidden_dropout"),  # the tensors tell the size
)  # fmt: skip
# in a larger model it is a `backbone_config` in a `vision_config`, which are looked for
SAM3_FAMILIES: dict[str, Family] = {"sam3_vit_model": _SAM3}
