"""Hugging Face's image towers of SigLIP and SigLIP 2, whose names are those of CLIP's but for the pooling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_flax.config import NaFlexViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.huggingface_clip import read_tower, tower_conditions, tower_infer, tower_layouts, tower_rules
from vit_flax.convert.layout import Layout, Shapes, any_match, vote
from vit_flax.convert.rules import DENSE, ConversionError, Drop, Operation, Rule
from vit_flax.convert.timm_blocks import linear, norm


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    reason = "the pooling by attention, which the classifier does not look at"
    if config.global_pool == "map":
        head: tuple[Rule | Drop, ...] = (
            Rule("head.probe", "attn_pool/latent"),
            Rule("head.attention.in_proj_weight", "attn_pool/qkv/kernel", DENSE),
            Rule("head.attention.in_proj_bias", "attn_pool/qkv/bias"),
            *linear("head.attention.out_proj", "attn_pool/proj"),
            *norm("head.layernorm", "attn_pool/norm"),
            *linear("head.mlp.fc{n}", "attn_pool/mlp/fc{n}"),
        )
    else:
        head = tuple(
            Drop(f"head.{part}", reason)
            for part in ("probe", "attention.{a}", "attention.{a}.{b}", "layernorm.{a}", "mlp.{a}.{b}")
        )
    return (
        *tower_rules(),
        Rule("embeddings.patch_embedding.bias", "patch_embed/proj/bias"),
        *norm("post_layernorm", "norm"),
        *head,
        *linear("classifier", "head"),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    classes = vote(shapes, ("classifier.weight", 0), ("classifier.bias", 0)) or 0
    pooled = "map" if any_match(shapes, "head.probe") else "none"
    values = {"num_classes": classes, "global_pool": "avg" if classes else pooled, "class_token": False}
    return {**tower_infer(shapes), **values}


def _write(config: ViTConfig) -> dict[str, Any]:
    tower = {
        "model_type": "siglip_vision_model",
        **hf.write(config),
        **hf.write_sizes(config),
        **hf.write_mlp(config),
        "vision_use_head": config.global_pool == "map",
    }
    if not config.num_classes:
        return {"architectures": ["SiglipVisionModel"], **tower}
    return {
        "architectures": ["SiglipForImageClassification"],
        "model_type": "siglip",
        "vision_config": tower,
        **hf.write_labels(config),
    }


_KERNEL = "embeddings.patch_embedding.weight"


def _naflex_evidence(names: Collection[str]) -> str | None:
    found = hf.ending(f"{hf.CLIP.block.format(i=0)}.{hf.CLIP.norm1}.weight", "post_layernorm.weight")(names)
    if not found or not isinstance(names, Mapping):
        return None
    # the names are SigLIP's: the patch embedding is no convolution
    flat = next((name for name, shape in names.items() if f".{name}".endswith(f".{_KERNEL}") and len(shape) == 2), None)
    return flat and f"{flat} of two axes"


def _naflex_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    height, width = config.patch_size
    flat = Operation(
        "(out, p p C) -> (p, p, C, out)",
        lambda a: np.moveaxis(np.reshape(a, (len(a), height, width, -1)), 0, -1),
        lambda a: (np.moveaxis(a, -1, 0).reshape(a.shape[-1], -1),),
    )
    rules = (rule for rule in _rules(config) if rule.source != _KERNEL)
    return (*rules, Rule(_KERNEL, "patch_embed/proj/kernel", flat))


def _naflex_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    values = _infer(shapes, known)
    rows, patch = vote(shapes, ("embeddings.position_embedding.weight", 0)), known.get("patch_size")
    if rows is None or patch is None:
        return values
    height, width = (patch, patch) if isinstance(patch, int) else patch
    side = math.isqrt(rows)
    return {**values, "image_size": (side * height, side * width)} if side * side == rows else values


def _naflex_read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    patch, side = attributes["patch_size"], math.isqrt(attributes["num_patches"])
    if side * side != attributes["num_patches"]:
        raise ConversionError(f"num_patches={attributes['num_patches']} is no square")
    sizes = {"image_size": (side * patch, side * patch), "patch_size": (patch, patch)}
    return {**hf.read(attributes), **hf.read_mlp(attributes), **sizes}


def _naflex_write(config: ViTConfig) -> dict[str, Any]:
    values = _write(config)
    tower = values.get("vision_config", values)
    del tower["image_size"]
    tower |= {"model_type": "siglip2_vision_model", "num_patches": config.num_patches}
    if tower is values:
        return {**values, "architectures": ["Siglip2VisionModel"]}
    return {**values, "architectures": ["Siglip2ForImageClassification"], "model_type": "siglip2"}


def _conditions(config: ViTConfig) -> list[str]:
    lines = tower_conditions(config)
    if (config.global_pool == "avg") != bool(config.num_classes):
        lines.append(
            f"global_pool={config.global_pool!r} with num_classes={config.num_classes} (it has a classifier of the "
            "tokens' mean, or pools by attention, or does neither)"
        )
    return lines


# From the general to the special, as `vit_flax.convert` has all layouts.
SIGLIP_LAYOUTS: tuple[Layout, ...] = (
    *tower_layouts(
        "siglip", "post_layernorm.weight", _infer, _rules,
        hf.fixed(class_token=(False,), qkv_bias=(True,), global_pool=("map", "avg", "none")),
        _write, _conditions,
    ),
    *(
        dataclasses.replace(
            layout, config_class=NaFlexViTConfig, evidence=_naflex_evidence,
            required=(("num_heads", "norm_eps", "activation", "patch_size", "in_chans"), ("image_size",)),
            resample=lambda config: "",
        )
        for layout in tower_layouts(
            "siglip2", "", _naflex_infer, _naflex_rules,
            hf.fixed(
                config_class=NaFlexViTConfig, qkv_bias=(True,), qk_scale=(None,), global_pool=("map", "avg", "none"),
            ),
            _naflex_write, _conditions,
        )
    ),
)  # fmt: skip


_SIGLIP = Family(
    layout="huggingface_siglip",
    defaults={
        **hf.SIZES, "intermediate_size": 3072, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    fields=read_tower,
    harmless=(*hf.HARMLESS, "vision_use_head"),  # the tensors tell
    part="vision_config",
)  # fmt: skip
_NAFLEX = Family(
    layout="huggingface_siglip2",
    defaults={
        **{name: value for name, value in hf.SIZES.items() if name != "image_size"}, "intermediate_size": 3072,
        "patch_size": 16, "num_patches": 256, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
    fields=_naflex_read,
    harmless=(*hf.HARMLESS, "vision_use_head"),  # the tensors tell
    part="vision_config",
)  # fmt: skip
SIGLIP_FAMILIES: dict[str, Family] = {
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
}
