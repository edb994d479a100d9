"""Hugging Face's image towers of CLIP and SigLIP, alone or beside their text towers.

The names are the same on disk and in memory but for the tower's own name before them, which files always have and
transformers 5 has in memory where there is something beside the tower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from vit_flax.config import NaFlexViTConfig, PlainViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.layout import Layout, Shapes, any_match, vote
from vit_flax.convert.rules import CONV, DENSE, UNBATCHED, VECTOR, ConversionError, Drop, Operation, Rule
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


def _tower_rules() -> tuple[Rule | Drop, ...]:
    return (
        Rule("embeddings.patch_embedding.weight", "patch_embed/proj/kernel", CONV),
        Rule("embeddings.position_embedding.weight", "pos_embed", UNBATCHED),
        *hf.block_rules(hf.CLIP),
        *BESIDE,
        Drop("embeddings.position_ids", "counts up"),
    )


def _clip_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    projection = (Rule("visual_projection.weight", "head/kernel", DENSE),)
    return (
        *_tower_rules(),
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


def _siglip_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
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
        *_tower_rules(),
        Rule("embeddings.patch_embedding.bias", "patch_embed/proj/bias"),
        *norm("post_layernorm", "norm"),
        *head,
        *linear("classifier", "head"),
    )


def _infer(shapes: Shapes) -> dict[str, Any]:
    return {**hf.block_infer(shapes, hf.CLIP), **hf.patch_infer(shapes, "embeddings.patch_embedding.weight")}


# CLIPForImageClassification: of the mean of the patches' tokens, before any norm
_CLASSIFIER = {"global_pool": "avg", "head_bias": True, "final_norm": False, "fc_norm": False}


def _clip_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    values = {**_infer(shapes), "patch_bias": False, "pre_norm": True}
    if classes := vote(shapes, ("classifier.weight", 0), ("classifier.bias", 0)):
        return {**values, "num_classes": classes, **_CLASSIFIER}
    projected = vote(shapes, ("visual_projection.weight", 0)) or 0
    return {**values, "num_classes": projected, "fc_norm": True, "head_bias": False, "global_pool": "token"}


def _siglip_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    classes = vote(shapes, ("classifier.weight", 0), ("classifier.bias", 0)) or 0
    pooled = "map" if any_match(shapes, "head.probe") else "none"
    values = {"num_classes": classes, "global_pool": "avg" if classes else pooled, "class_token": False}
    return {**_infer(shapes), **values}


def _clip_write(config: ViTConfig) -> dict[str, Any]:
    tower = {"model_type": "clip_vision_model", **hf.write(config), **hf.write_sizes(config), **hf.write_mlp(config)}
    if config.head_bias:
        name = "CLIPForImageClassification"
        return {"architectures": [name], "model_type": "clip", "vision_config": tower, **hf.write_labels(config)}
    if config.num_classes:
        return {"architectures": ["CLIPVisionModelWithProjection"], **tower, "projection_dim": config.num_classes}
    return {"architectures": ["CLIPVisionModel"], **tower}


def _siglip_write(config: ViTConfig) -> dict[str, Any]:
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
    rules = (rule for rule in _siglip_rules(config) if rule.source != _KERNEL)
    return (*rules, Rule(_KERNEL, "patch_embed/proj/kernel", flat))


def _naflex_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    values = _siglip_infer(shapes, known)
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
    values = _siglip_write(config)
    tower = values.get("vision_config", values)
    del tower["image_size"]
    tower |= {"model_type": "siglip2_vision_model", "num_patches": config.num_patches}
    if tower is values:
        return {**values, "architectures": ["Siglip2VisionModel"]}
    return {**values, "architectures": ["Siglip2ForImageClassification"], "model_type": "siglip2"}


def _conditions(config: ViTConfig) -> list[str]:
    return hf.conditions(config) + hf.square(config)


def _clip_conditions(config: ViTConfig) -> list[str]:
    lines = _conditions(config)
    told = {name: getattr(config, name) for name in _CLASSIFIER}
    other = {"global_pool": "token", "head_bias": False, "final_norm": True, "fc_norm": True}
    if told != other and (told != _CLASSIFIER or not config.num_classes):
        lines.append(
            ", ".join(f"{name}={value!r}" for name, value in told.items())
            + " (it pools the class token, then normalises; or classifies the mean of tokens that are not normalised)"
        )
    return lines


def _siglip_conditions(config: ViTConfig) -> list[str]:
    lines = _conditions(config)
    if (config.global_pool == "avg") != bool(config.num_classes):
        lines.append(
            f"global_pool={config.global_pool!r} with num_classes={config.num_classes} (it has a classifier of the "
            "tokens' mean, or pools by attention, or does neither)"
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


def _family(
    name: str,
    needle: str,
    infer: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]],
    rules: Callable[[ViTConfig], tuple[Rule | Drop, ...]],
    fixed: Mapping[str, tuple[Any, ...]],
    write: Callable[[ViTConfig], dict[str, Any]],
    conditions: Callable[[ViTConfig], list[str]],
    **more: Any,
) -> tuple[Layout, Layout]:
    """Returns the layouts of a tower in memory and on disk; files without the tower's name are both."""

    def layout(suffix: str, where: str, prefix: Callable[[ViTConfig], str]) -> Layout:
        block = f"{hf.CLIP.block.format(i=0)}.{hf.CLIP.norm1}.weight"
        fields: dict[str, Any] = {
            "config_class": PlainViTConfig,
            "evidence": hf.ending(block, needle),
            "required": hf.REQUIRED,
            "resample": lambda config: "bicubic",
        }
        return Layout(
            name=f"huggingface_{name}{suffix}",
            description=f"Hugging Face's image tower of {name}, {where}",
            infer=infer,
            rules=rules,
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
            **{**fields, **more},
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
CLIP_LAYOUTS: tuple[Layout, ...] = (
    *_family(
        "siglip", "post_layernorm.weight", _siglip_infer, _siglip_rules,
        hf.fixed(class_token=(False,), qkv_bias=(True,), global_pool=("map", "avg", "none")),
        _siglip_write, _siglip_conditions,
    ),
    *_family(
        "siglip2", "", _naflex_infer, _naflex_rules,
        hf.fixed(
            config_class=NaFlexViTConfig, qkv_bias=(True,), qk_scale=(None,),
            global_pool=("map", "avg", "none"),
        ),
        _naflex_write, _siglip_conditions, config_class=NaFlexViTConfig, evidence=_naflex_evidence,
        required=(("num_heads", "norm_eps", "activation", "patch_size", "in_chans"), ("image_size",)),
        resample=lambda config: "",
    ),
    *_family(
        "clip", "pre_layrnorm.weight", _clip_infer, _clip_rules,
        hf.fixed(
            patch_bias=(False,), pre_norm=(True,), fc_norm=(True, False), final_norm=(True, False),
            head_bias=(False, True), qkv_bias=(True,), global_pool=("token", "avg"),
        ),
        _clip_write, _clip_conditions, classifier=lambda config: _CLASSIFIER,
    ),
)  # fmt: skip


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**hf.read(attributes), **hf.read_sizes(attributes), **hf.read_mlp(attributes)}


_CLIP = Family(
    layout="huggingface_clip",
    defaults={
        **hf.SIZES, "intermediate_size": 3072, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    fields=_read,
    harmless=(*hf.HARMLESS, "projection_dim"),  # the tensors tell
    part="vision_config",
)  # fmt: skip
_SIGLIP = Family(
    layout="huggingface_siglip",
    defaults={
        **hf.SIZES, "intermediate_size": 3072, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    fields=_read,
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
CLIP_FAMILIES: dict[str, Family] = {
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
}
