"""Hugging Face's InternViT, the image tower of InternVL; files and memory have the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.layout import Layout, Shapes, any_match
from vit_flax.convert.rules import CONV, Drop, Rule
from vit_flax.convert.timm_blocks import norm

_NAMES = hf.Names(
    "encoder.layer.{i}", "layernorm_before", "layernorm_after", "attention.q_proj", "attention.k_proj",
    "attention.v_proj", "attention.projection_layer", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
_KERNEL = "embeddings.patch_embeddings.projection.weight"


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    return (
        Rule("embeddings.cls_token", "cls_token"),
        hf.mask_rule(config),
        Rule("embeddings.position_embeddings", "pos_embed"),
        Rule(_KERNEL, "patch_embed/proj/kernel", CONV),
        Rule("embeddings.patch_embeddings.projection.bias", "patch_embed/proj/bias"),
        *hf.block_rules(_NAMES),
        Rule(f"{_NAMES.block}.lambda_{{n}}", "blocks_{i}/ls{n}/gamma"),
        *norm("layernorm", "norm"),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    normed = any_match(shapes, "layernorm.weight")
    return {
        **hf.block_infer(shapes, _NAMES),
        **hf.patch_infer(shapes, _KERNEL),
        "norm_layer": "layernorm" if any_match(shapes, f"{_NAMES.block}.{_NAMES.norm1}.bias") else "rmsnorm",
        "init_values": 0.1,  # only sets what a new model starts with
        "mask_token": any_match(shapes, "embeddings.mask_token"),
        "pos_embed": "learned" if any_match(shapes, "embeddings.position_embeddings") else "none",
        "final_norm": normed,
        "num_classes": 0,
        "global_pool": "token"
        if normed
        else "avg",  # what its config calls the pooled output; the class returns tokens
    }


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **hf.read(attributes),
        **hf.read_sizes(attributes),
        **hf.read_mlp(attributes),
        "init_values": attributes["layer_scale_init_value"],
    }


def _write(config: ViTConfig) -> dict[str, Any]:
    return {
        "architectures": ["InternVLVisionModel"],
        "model_type": "internvl_vision",
        **hf.write(config),
        "image_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        **hf.write_mlp(config),
        "attention_bias": config.qkv_bias,
        "norm_type": "layer_norm" if config.norm_layer == "layernorm" else "rms_norm",
        "use_mask_token": config.mask_token,
        "use_absolute_position_embeddings": config.pos_embed == "learned",
        "layer_scale_init_value": config.init_values,
        "use_mean_pooling": not config.final_norm,
    }


def _conditions(config: ViTConfig) -> list[str]:
    lines = hf.conditions(config)
    if config.init_values is None:
        lines.append("init_values=None (it has LayerScale)")
    if config.final_norm and config.norm_layer != "layernorm":
        lines.append(f"final_norm=True with norm_layer={config.norm_layer!r} (its last norm is a LayerNorm)")
    return lines


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    return (*hf.block_components(_NAMES, ""), *((("layernorm", "norm"),) if config.final_norm else ()))


INTERNVL_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="huggingface_internvl",
        description="Hugging Face's InternViT, of InternVL",
        config_class=PlainViTConfig,
        evidence=hf.ending(f"{_NAMES.block.format(i=0)}.{_NAMES.out}.weight", "encoder.layer.0.lambda_1"),
        infer=_infer,
        rules=_rules,
        required=hf.REQUIRED,
        defaults=lambda known: {},
        fixed=hf.fixed(
            "init_values", "mask_token", "final_norm",
            num_classes=(0,), norm_layer=("layernorm", "rmsnorm"), pos_embed=("learned", "none"),
            global_pool=("token", "avg", "none"),
        ),
        components=_components,
        conditions=_conditions,
        hint=hf.HINT,
        resample=lambda config: "bicubic",
        config_file=_write,
    ),
)  # fmt: skip

INTERNVL_FAMILIES: dict[str, Family] = {
    "internvl_vision": Family(
        layout="huggingface_internvl",
        defaults={
            **hf.SIZES, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 448,
            "patch_size": 14, "intermediate_size": 4096, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
            "layer_scale_init_value": 0.1,
        },
        fields=_read,
        only={"use_qk_norm": (False,)},  # which would be over all heads together
        # the tensors tell
        harmless=(
            *hf.HARMLESS, "attention_bias", "norm_type", "use_mask_token", "use_absolute_position_embeddings",
            "use_mean_pooling", "projection_dropout",
        ),
    )
}  # fmt: skip
