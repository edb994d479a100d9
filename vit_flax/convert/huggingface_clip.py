"""Hugging Face's image tower of CLIP, alone or beside its text tower, and what SigLIP's shares with it.

The names are the same on disk and in memory but for the tower's own name before them, which files always have and
transformers 5 has in memory where there is something beside the tower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.layout import Layout, Shapes, vote
from vit_flax.convert.rules import CONV, DENSE, UNBATCHED, VECTOR, Drop, Rule
from vit_flax.convert.timm_blocks import linear, norm

_TEXT = "the text tower's"
# what the image tower alone leaves out
BESIDE = (
    Drop("text_model.embeddings.{part}.weight", _TEXT),
    Drop("text_model.encoder.layers.{i}.{part}.{kind}", _TEXT),
    Drop("text_model.encoder.layers.{i}.{layer}.{part}.{kind}", _TEXT),
    Drop("text_model.final_layer_norm.{kind}", _TEXT),
    Drop("text_model.head.{kind}", _TEXT),
    Drop("text_model.embeddings.position_ids", "counts up"),
    Drop("text_projection.weight", _TEXT),
    Drop("logit_scale", "of the similarity of images and texts"),
    Drop("text_model.{rest}", _TEXT, otherwise=True),  # BERT's and RoBERTa's, beside the same image tower
    Drop("logit_bias", "of the similarity of images and texts"),
)


def tower_rules() -> tuple[Rule | Drop, ...]:
    """Returns the rules of what both kinds of towers have."""
    return (
        Rule("embeddings.patch_embedding.weight", "patch_embed/proj/kernel", CONV),
        Rule("embeddings.position_embedding.weight", "pos_embed", UNBATCHED),
        *hf.block_rules(hf.CLIP),
        *BESIDE,
        Drop("embeddings.position_ids", "counts up"),
    )


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    projection = (Rule("visual_projection.weight", "head/kernel", DENSE),)
    return (
        *tower_rules(),
        Rule("embeddings.class_embedding", "cls_token", VECTOR),
        *norm("pre_layrnorm", "norm_pre"),
        *(norm("post_layernorm", "fc_norm") if config.fc_norm else _unread_norm(config.embed_dim)),
        *(linear("classifier", "head") if config.head_bias else projection),
    )


def _unread_norm(width: int) -> tuple[Drop, Drop]:
    reason = "the classifier looks at the tokens before it; written as the identity"
    return (
        Drop("post_layernorm.weight", reason, np.ones(width, np.float32)),
        Drop("post_layernorm.bias", reason, np.zeros(width, np.float32)),
    )


def tower_infer(shapes: Shapes) -> dict[str, object]:
    """Returns what the shapes of blocks and patch embedding tell."""
    return {**hf.block_infer(shapes, hf.CLIP), **hf.patch_infer(shapes, "embeddings.patch_embedding.weight")}


# CLIPForImageClassification: of the mean of the patches' tokens, before any norm
_CLASSIFIER = {"global_pool": "avg", "head_bias": True, "final_norm": False, "fc_norm": False}


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    values = {**tower_infer(shapes), "patch_bias": False, "pre_norm": True}
    if classes := vote(shapes, ("classifier.weight", 0), ("classifier.bias", 0)):
        return {**values, "num_classes": classes, **_CLASSIFIER}
    projected = vote(shapes, ("visual_projection.weight", 0)) or 0
    return {**values, "num_classes": projected, "fc_norm": True, "head_bias": False, "global_pool": "token"}


def _write(config: ViTConfig) -> dict[str, Any]:
    tower = {"model_type": "clip_vision_model", **hf.write(config), **hf.write_sizes(config), **hf.write_mlp(config)}
    if config.head_bias:
        name = "CLIPForImageClassification"
        return {"architectures": [name], "model_type": "clip", "vision_config": tower, **hf.write_labels(config)}
    if config.num_classes:
        return {"architectures": ["CLIPVisionModelWithProjection"], **tower, "projection_dim": config.num_classes}
    return {"architectures": ["CLIPVisionModel"], **tower}


def tower_conditions(config: ViTConfig) -> list[str]:
    """Returns what neither kind of tower can hold."""
    return hf.conditions(config) + hf.square(config)


def _conditions(config: ViTConfig) -> list[str]:
    lines = tower_conditions(config)
    told = {name: getattr(config, name) for name in _CLASSIFIER}
    other = {"global_pool": "token", "head_bias": False, "final_norm": True, "fc_norm": True}
    if told != other and (told != _CLASSIFIER or not config.num_classes):
        lines.append(
            ", ".join(f"{name}={value!r}" for name, value in told.items())
            + " (it pools the class token, then normalises; or classifies the mean of tokens that are not normalised)"
        )
    return lines


def _components(config: ViTConfig, prefix: str) -> tuple[tuple[str, str], ...]:
    pairs = hf.block_components(hf.CLIP, prefix)
    if config.pre_norm:  # CLIP
        pairs += ((f"{prefix}pre_layrnorm", "norm_pre"),)
        if config.head_bias:
            return (*pairs, ("classifier:input", "head:input"), ("classifier", "head"))
        pairs += ((f"{prefix}post_layernorm", "fc_norm"),)
        return (*pairs, *((("visual_projection", "head"),) if config.num_classes else ()))
    pairs += ((f"{prefix}post_layernorm", "norm"),)
    if config.global_pool == "map":
        pairs += ((f"{prefix}head.mlp", "attn_pool/mlp"), (f"{prefix}head", "attn_pool"))
    return (*pairs, *((("classifier:input", "head:input"), ("classifier", "head")) if config.num_classes else ()))


def tower_layouts(
    name: str,
    needle: str,
    infer: Callable[[Shapes, Mapping[str, object]], dict[str, object]],
    rules: Callable[[ViTConfig], tuple[Rule | Drop, ...]],
    fixed: Mapping[str, tuple[object, ...]],
    write: Callable[[ViTConfig], Mapping[str, object]],
    conditions: Callable[[ViTConfig], list[str]],
) -> tuple[Layout, Layout]:
    """Returns the layouts of a tower in memory and on disk; files without the tower's name are both."""

    def layout(suffix: str, where: str, prefix: Callable[[ViTConfig], str]) -> Layout:
        block = f"{hf.CLIP.block.format(i=0)}.{hf.CLIP.norm1}.weight"
        return Layout(
            name=f"huggingface_{name}{suffix}",
            description=f"Hugging Face's image tower of {name}, {where}",
            config_class=PlainViTConfig,
            evidence=hf.ending(block, needle),
            infer=infer,
            rules=rules,
            required=hf.REQUIRED,
            defaults=lambda known: {},
            fixed=fixed,
            components=lambda config: _components(config, prefix(config)),
            conditions=conditions,
            hint=hf.HINT,
            prefixes=("vision_model.",),
            prefix=prefix,
            outside=("visual_projection.", "classifier."),
            heads=hf.CLASSIFIER,
            belongs=hf.ending(block),
            config_file=write,
            resample=lambda config: "bicubic",
        )

    return (
        layout(
            "_memory",
            "as transformers 5 has it in memory",
            lambda config: "vision_model." if config.num_classes else "",
        ),
        layout("", "as its files have it", lambda config: "vision_model."),
    )


# From the general to the special, as `vit_flax.convert` has all layouts.
CLIP_LAYOUTS: tuple[Layout, ...] = tuple(
    dataclasses.replace(layout, classifier=lambda config: _CLASSIFIER)
    for layout in tower_layouts(
        "clip", "pre_layrnorm.weight", _infer, _rules,
        hf.fixed(
            patch_bias=(False,), pre_norm=(True,), fc_norm=(True, False), final_norm=(True, False),
            head_bias=(False, True), qkv_bias=(True,), global_pool=("token", "avg"),
        ),
        _write, _conditions,
    )
)  # fmt: skip


def read_tower(attributes: Mapping[str, object]) -> dict[str, object]:
    """Returns the fields of a vision_config."""
    return {**hf.read(attributes), **hf.read_sizes(attributes), **hf.read_mlp(attributes)}


_CLIP = Family(
    layout="huggingface_clip",
    defaults={
        **hf.SIZES, "intermediate_size": 3072, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    fields=read_tower,
    harmless=(*hf.HARMLESS, "projection_dim"),  # the tensors tell
    part="vision_config",
)  # fmt: skip
CLIP_FAMILIES: dict[str, Family] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
}
