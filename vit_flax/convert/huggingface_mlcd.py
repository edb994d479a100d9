"""Hugging Face's MLCD: CLIP's image tower without a position table, its queries and keys rotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_flax.config import RopeViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.layout import Layout, Shapes
from vit_flax.convert.rules import CONV, VECTOR, ConversionError, Drop, Rule
from vit_flax.convert.timm_blocks import norm

_KERNEL = "embeddings.patch_embedding.weight"
_TURNED = {"rope_type": "cat", "rope_rotate_half": True, "rope_class_token": True}
_TOWER = {"pre_norm": True, "fc_norm": True, "patch_bias": False, "key_bias": True, **_TURNED}


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    return (
        Rule(_KERNEL, "patch_embed/proj/kernel", CONV),
        Rule("embeddings.class_embedding", "cls_token", VECTOR),
        Rule("class_pos_emb", "rope_class_angles"),
        *norm("pre_layrnorm", "norm_pre"),
        *hf.block_rules(hf.CLIP),
        *norm("post_layernorm", "fc_norm"),
        Drop("embeddings.position_ids", "counts up"),
        Drop("vision_rotary_embedding.inv_freq", "follows from rope_theta"),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    values = {**hf.block_infer(shapes, hf.CLIP), **hf.patch_infer(shapes, _KERNEL), **_TOWER}
    return {**values, "num_classes": 0, "global_pool": "token", "init_values": None}


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    rope = attributes["rope_parameters"] or {}
    if set(rope) - {"rope_theta", "rope_type"} or rope.get("rope_type", "axial") != "axial":
        raise ConversionError(f"rope_parameters={rope}: only rope_theta of rope_type 'axial' is followed")
    theta = {"rope_theta": float(rope.get("rope_theta", 10000.0))}
    return {**hf.read(attributes), **hf.read_sizes(attributes), **hf.read_mlp(attributes), **theta}


def _write(config: ViTConfig) -> dict[str, Any]:
    return {
        "architectures": ["MLCDVisionModel"],
        "model_type": "mlcd_vision_model",
        **hf.write(config),
        **hf.write_sizes(config),
        **hf.write_mlp(config),
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "axial"},
    }


def _components(config: ViTConfig, prefix: str) -> tuple[tuple[str, str], ...]:
    outside = (("pre_layrnorm", "norm_pre"), ("post_layernorm", "fc_norm"))
    # its projection has the axis of tokens first
    pairs = (pair for pair in hf.block_components(hf.CLIP, prefix) if "attn/proj" not in pair[1])
    return (*pairs, *((f"{prefix}{a}", b) for a, b in outside))


def _layout(suffix: str, where: str, prefix: str) -> Layout:
    return Layout(
        name=f"huggingface_mlcd{suffix}",
        description=f"Hugging Face's MLCD, {where}",
        config_class=RopeViTConfig,
        evidence=hf.ending(f"{hf.CLIP.block.format(i=0)}.{hf.CLIP.norm1}.weight", "class_pos_emb"),
        infer=_infer,
        rules=_rules,
        required=(("num_heads", "image_size", "norm_eps", "activation", "rope_theta"),),
        defaults=lambda known: {},
        fixed=hf.fixed(
            "rope_theta",
            config_class=RopeViTConfig, qkv_bias=(True,), num_classes=(0,), global_pool=("token",), init_values=(None,),
            **{name: (value,) for name, value in _TOWER.items()},
        ),
        components=lambda config: _components(config, prefix),
        conditions=lambda config: hf.conditions(config) + hf.square(config),
        hint=hf.HINT,
        prefixes=("vision_model.",),
        prefix=lambda config: prefix,
        config_file=_write,
    )  # fmt: skip


MLCD_LAYOUTS: tuple[Layout, ...] = (
    _layout("_memory", "as transformers 5 has it in memory", ""),
    _layout("", "as its files have it", "vision_model."),
)
_MLCD = Family(
    layout="huggingface_mlcd",
    defaults={
        **hf.SIZES, "hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rope_parameters": None,
    },
    fields=_read,
    only={"num_key_value_groups": (1,)},
    harmless=hf.HARMLESS,
)  # fmt: skip
MLCD_FAMILIES: dict[str, Family] = {"mlcd_vision_model": _MLCD, "mlcd": _MLCD}
