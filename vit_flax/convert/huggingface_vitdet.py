"""Hugging Face's ViTDet; files and memory have the same names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_flax.config import ViTConfig, WindowedViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family, activation
from vit_flax.convert.layout import Layout, Shapes, any_match, vote
from vit_flax.convert.rules import CONV, ConversionError, Rule
from vit_flax.convert.timm_blocks import linear, norm
from vit_flax.convert.timm_sam import head_width, rel_pos_rules, with_norm

_BLOCK = "encoder.layer.{i}"
_QKV = "attention.qkv"  # one layer of all three
_NAMES = hf.Names(_BLOCK, "norm1", "norm2", _QKV, _QKV, _QKV, "attention.proj", "mlp.fc1", "mlp.fc2")
_KERNEL = "embeddings.projection.weight"
_TABLE = "embeddings.position_embeddings"


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    return (
        Rule(_TABLE, "pos_embed"),
        Rule(_KERNEL, "patch_embed/proj/kernel", CONV),
        Rule("embeddings.projection.bias", "patch_embed/proj/bias"),
        *norm(f"{_BLOCK}.norm{{n}}", "blocks_{i}/norm{n}"),
        *linear(f"{_BLOCK}.attention.{{layer}}", "blocks_{i}/attn/{layer}"),
        *rel_pos_rules(f"{_BLOCK}.attention"),
        *linear(f"{_BLOCK}.mlp.fc{{n}}", "blocks_{i}/mlp/fc{n}"),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    if any_match(shapes, f"{_BLOCK}.residual.{{rest}}"):
        raise ConversionError("layout 'huggingface_vitdet': convolutions after blocks (residual) are not read")
    blocks = hf.block_infer(shapes, _NAMES)
    rows = vote(shapes, (_TABLE, 1))
    side = math.isqrt(rows - 1) if rows else 0
    return {
        **blocks,
        **hf.patch_infer(shapes, _KERNEL),
        "pos_embed": "learned" if rows else "none",
        "pos_embed_class_row": bool(rows),
        "pos_embed_grid": (side, side) if rows else None,  # it has no other
        "use_rel_pos": any_match(shapes, f"{_BLOCK}.attention.rel_pos_h"),
        "num_classes": 0,
        "global_pool": "none",
        **head_width(shapes, f"{_BLOCK}.attention", blocks["embed_dim"]),
    }


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    inside = attributes["window_block_indices"]
    return {
        **hf.read(attributes),
        **hf.read_sizes(attributes),
        "mlp_ratio": float(attributes["mlp_ratio"]),
        "activation": activation(attributes["hidden_act"]),
        "window_size": attributes["window_size"],
        "global_attn_indexes": tuple(i for i in range(attributes["num_hidden_layers"]) if i not in inside),
    }


def _write(config: ViTConfig) -> dict[str, Any]:
    grid, patch = config.pos_embed_grid or config.grid_size, config.patch_size
    return {
        "architectures": ["VitDetModel"],
        "model_type": "vitdet",
        **hf.write(config),
        **hf.write_sizes(config),
        "pretrain_image_size": grid[0] * patch[0],
        "mlp_ratio": int(config.mlp_ratio),
        "hidden_act": hf.write_mlp(config)["hidden_act"],
        "qkv_bias": config.qkv_bias,
        "window_size": config.window_size,
        "window_block_indices": [i for i in range(config.depth) if i not in config.global_attn_indexes],
        "use_absolute_position_embeddings": config.pos_embed == "learned",
        "use_relative_position_embeddings": config.use_rel_pos,
    }


def _conditions(config: ViTConfig) -> list[str]:
    lines = hf.conditions(config)
    grid = config.pos_embed_grid
    if config.pos_embed == "learned" and not (config.pos_embed_class_row and grid and grid[0] == grid[1]):
        lines.append(f"pos_embed_class_row={config.pos_embed_class_row}, pos_embed_grid={grid} (a square after a row)")
    if config.mlp_ratio != int(config.mlp_ratio):
        lines.append(f"mlp_ratio={config.mlp_ratio} (it holds whole numbers)")
    return lines


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    pairs = (
        ("norm1", "norm1"), ("attention.qkv", "attn/qkv"), ("attention.proj", "attn/proj"), ("norm2", "norm2"),
        ("norm2:input", "norm2:input"), ("mlp.fc1", "mlp/fc1"), ("mlp.fc2:input", "mlp/fc2:input"),
        ("mlp.fc2", "mlp/fc2"), ("mlp", "mlp"),
    )  # fmt: skip
    return tuple((f"{_BLOCK}.{a}", f"blocks_{{i}}/{b}") for a, b in pairs)


VITDET_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="huggingface_vitdet",
        description="Hugging Face's ViTDet",
        config_class=WindowedViTConfig,
        evidence=hf.ending(f"{_BLOCK.format(i=0)}.attention.qkv.weight", f"{_BLOCK.format(i=0)}.mlp.fc1.weight"),
        infer=_infer,
        rules=_rules,
        required=(*hf.REQUIRED, ("window_size", "global_attn_indexes")),
        defaults=lambda known: {},
        fixed=hf.fixed(
            "window_size", "global_attn_indexes", "use_rel_pos", "pos_embed_grid", "pos_embed_class_row",
            config_class=WindowedViTConfig, num_classes=(0,), pos_embed=("learned", "none"), final_norm=(False,),
            global_pool=("none",), pos_embed_fit=("bicubic",),
        ),
        components=_components,
        conditions=_conditions,
        hint=hf.HINT,
        classifier=with_norm,
        config_file=_write,
    ),
)  # fmt: skip
VITDET_FAMILIES: dict[str, Family] = {
    "vitdet": Family(
        layout="huggingface_vitdet",
        defaults={
            **hf.SIZES, "patch_size": 16, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
            "window_size": 0, "window_block_indices": (),
        },
        fields=_read,
        only={"residual_block_indices": ([], ())},
        # the tensors tell
        harmless=(
            *hf.HARMLESS, "dropout_prob", "qkv_bias", "pretrain_image_size", "use_absolute_position_embeddings",
            "use_relative_position_embeddings",
        ),
    )
}  # fmt: skip
