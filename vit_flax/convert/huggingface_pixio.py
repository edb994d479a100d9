"""Hugging Face's Pixio: ViT with several class tokens, whose mean is its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family, activation
from vit_flax.convert.layout import Layout, Shapes, ratio_for, vote
from vit_flax.convert.rules import CONV, Drop, Rule
from vit_flax.convert.timm_blocks import norm

# as transformers 5 saves it; the published files have the MLP's layers as `mlp.fc1` and `mlp.fc2`
_FILES = dataclasses.replace(hf.VIT, norm1="norm1", norm2="norm2")
_PUBLISHED = tuple(
    (f"{_FILES.block}.{old}.{{part}}", f"{_FILES.block}.{new}.{{part}}")
    for old, new in (("mlp.fc1", _FILES.fc1), ("mlp.fc2", _FILES.fc2))
)
_KERNEL = "embeddings.patch_embeddings.projection.weight"


def _rules(names: hf.Names) -> tuple[Rule | Drop, ...]:
    return (
        Rule("embeddings.cls_token", "reg_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        Rule(_KERNEL, "patch_embed/proj/kernel", CONV),
        Rule("embeddings.patch_embeddings.projection.bias", "patch_embed/proj/bias"),
        *hf.block_rules(names),
        *norm("layernorm", "norm"),
    )


def _infer(names: hf.Names) -> Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]:
    return lambda shapes, known: {
        **hf.block_infer(shapes, names),
        **hf.patch_infer(shapes, _KERNEL),
        "class_token": False,
        "reg_tokens": vote(shapes, ("embeddings.cls_token", 1)) or 0,
        "num_classes": 0,
        "global_pool": "prefix_avg",
    }


_FIELDS = {**hf.FIELDS, "qkv_bias": "qkv_bias"}


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    width = attributes["hidden_size"]
    return {
        **hf.read(attributes, _FIELDS),
        **hf.read_sizes(attributes),
        "mlp_ratio": ratio_for(int(width * attributes["mlp_ratio"]), width),
        "activation": activation(attributes["hidden_act"]),
    }


def _write(config: ViTConfig) -> dict[str, Any]:
    return {
        "architectures": ["PixioModel"],
        "model_type": "pixio",
        **hf.write(config, _FIELDS),
        **hf.write_sizes(config),
        "mlp_ratio": config.mlp_dim // config.embed_dim,
        "hidden_act": hf.write_mlp(config)["hidden_act"],
        "n_cls_tokens": config.reg_tokens,
    }


def _conditions(config: ViTConfig) -> list[str]:
    lines = hf.conditions(config) + hf.square(config)
    if config.mlp_dim % config.embed_dim:
        lines.append(f"mlp_ratio={config.mlp_ratio} (it holds an integer)")
    if not config.reg_tokens:
        lines.append("reg_tokens=0 (its output is their mean)")
    return lines


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    return (
        ("embeddings.patch_embeddings", "patch_embed"),
        *hf.block_components(hf.VIT_MEMORY, ""),
        ("layernorm", "norm"),
    )


def _layout(names: hf.Names, suffix: str, where: str) -> Layout:
    block = f"{names.block.format(i=0)}.{names.norm1}.weight"
    return Layout(
        name=f"huggingface_pixio{suffix}",
        description=f"Hugging Face's Pixio, {where}",
        config_class=PlainViTConfig,
        evidence=hf.ending(f"pixio.{block}"),  # else the names are ViT's
        infer=_infer(names),
        rules=lambda config: _rules(names),
        required=hf.REQUIRED,
        defaults=lambda known: {},
        fixed=hf.fixed("reg_tokens", class_token=(False,), num_classes=(0,), global_pool=("prefix_avg",)),
        components=_components,
        conditions=_conditions,
        hint=hf.HINT,
        resample=lambda config: "bicubic",
        aliases=_PUBLISHED,
        prefixes=("pixio.",),
        belongs=hf.ending(block),
        config_file=_write,
    )


PIXIO_LAYOUTS: tuple[Layout, ...] = (
    _layout(_FILES, "", "as its files have it"),
    _layout(hf.VIT_MEMORY, "_memory", "as transformers 5 has it in memory"),
)
PIXIO_FAMILIES: dict[str, Family] = {
    "pixio": Family(
        layout="huggingface_pixio",
        defaults={
            **hf.SIZES, "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "image_size": 256,
            "patch_size": 16, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
        },
        fields=_read,
        # the tensors tell; the rest is of its use as a backbone
        harmless=(*hf.HARMLESS, "n_cls_tokens", "apply_layernorm", "reshape_hidden_states"),
    )
}  # fmt: skip
