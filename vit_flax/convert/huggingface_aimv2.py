"""AIMv2: Hugging Face's image tower, alone or beside its text tower, and Apple's own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.layout import Layout, Shapes, any_match, only, vote
from vit_flax.convert.rules import CONV, DENSE, UNBATCHED, Drop, Rule
from vit_flax.convert.timm import named
from vit_flax.convert.timm_blocks import joined, linear

_TEXT = "the text tower's"
_TARGET = "blocks_{i}"
# what every AIMv2 is, whatever names it has
_MODEL: dict[str, Any] = {
    "class_token": False, "norm_layer": "rmsnorm", "patch_norm": True, "mlp_layer": "swiglu",
}  # fmt: skip
_NAMES = hf.Names(
    "encoder.layers.{i}", "rms_norm1", "rms_norm2", "attention.q_proj", "attention.k_proj", "attention.v_proj",
    "attention.out_proj", "ffn.up_proj", "ffn.down_proj",
)  # fmt: skip


def _scale(source: str, target: str) -> Rule:
    return Rule(f"{source}.weight", f"{target}/scale")


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    source, ffn = _NAMES.block, f"{_NAMES.block}.ffn"
    return (
        Rule("embeddings.patch_embed.weight", "patch_embed/proj/kernel", CONV),
        Rule("embeddings.patch_embed.bias", "patch_embed/proj/bias"),
        _scale("embeddings.rms_norm", "patch_embed/norm"),
        Rule("embeddings.position_embedding.weight", "pos_embed", UNBATCHED),
        _scale(f"{source}.rms_norm{{n}}", f"{_TARGET}/norm{{n}}"),
        *(rule for rule in hf.block_rules(_NAMES) if "/norm" not in rule.target and "/fc1" not in rule.target),
        *joined((f"{ffn}.gate_proj", f"{ffn}.up_proj"), f"{_TARGET}/mlp/fc1", (1, 1)),
        _scale("rms_norm", "norm"),
        Rule("head.cls_token", "attn_pool/latent"),
        *joined(("head.k_proj", "head.v_proj"), "attn_pool/kv", (1, 1)),
        *linear("head.output_proj", "attn_pool/proj"),
        Rule("visual_projection.weight", "head/kernel", DENSE),
        Drop("embeddings.position_ids", "counts up"),
        Drop("text_model.{rest}", _TEXT),
        Drop("text_projection.weight", _TEXT),
        Drop("logit_scale", "of the similarity of images and texts"),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    values = {**hf.block_infer(shapes, _NAMES), **hf.patch_infer(shapes, "embeddings.patch_embed.weight"), **_MODEL}
    learned = any_match(shapes, "embeddings.position_embedding.weight")
    projected = vote(shapes, ("visual_projection.weight", 0)) or 0
    return {
        **values,
        "proj_bias": any_match(shapes, f"{_NAMES.block}.{_NAMES.out}.bias"),
        "mlp_bias": any_match(shapes, f"{_NAMES.block}.{_NAMES.fc2}.bias"),
        "pos_embed": "learned" if learned else "native_sincos_2d",
        "global_pool": "query" if any_match(shapes, "head.cls_token") else "none",
        "num_classes": projected,
        "head_bias": not projected,
    }


_FIELDS = {**{k: v for k, v in hf.FIELDS.items() if k != "layer_norm_eps"}, "rms_norm_eps": "norm_eps"}


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**hf.read(attributes, _FIELDS), **hf.read_sizes(attributes), **hf.read_mlp(attributes)}


def _write(config: ViTConfig) -> dict[str, Any]:
    return {
        "architectures": ["Aimv2VisionModel"],
        "model_type": "aimv2_vision_model",
        **hf.write(config, _FIELDS),
        **hf.write_sizes(config),
        **hf.write_mlp(config),
        "qkv_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "use_head": config.global_pool == "query",
        "is_native": config.pos_embed == "native_sincos_2d",
    }


def _conditions(config: ViTConfig) -> list[str]:
    lines = hf.conditions(config) + hf.square(config)
    if config.proj_bias != config.qkv_bias:
        lines.append(f"proj_bias={config.proj_bias} with qkv_bias={config.qkv_bias} (it has both or none)")
    if config.num_classes and (config.head_bias or config.global_pool != "query"):
        lines.append("num_classes with head_bias=True or no global_pool='query' (it projects what it pooled)")
    if config.pool_num_heads != config.num_heads:
        lines.append(f"attn_pool_num_heads={config.attn_pool_num_heads} (its pooling has as many heads as its blocks)")
    return lines


def _components(config: ViTConfig, prefix: str) -> tuple[tuple[str, str], ...]:
    pairs = tuple(pair for pair in hf.block_components(_NAMES, prefix) if not pair[1].endswith("mlp/fc1"))
    pairs += ((f"{prefix}rms_norm", "norm"),)
    return (*pairs, *(((f"{prefix}head", "attn_pool"),) if config.global_pool == "query" else ()))


_FREE = (
    "image_size", "patch_size", "crop_to_patches", "in_chans", "num_classes", "embed_dim", "depth", "num_heads",
    "mlp_ratio", "norm_eps", "qkv_bias", "proj_bias", "mlp_bias", "activation", "head_bias", "attn_pool_num_heads",
)  # fmt: skip
_FIXED: dict[str, Any] = {name: (value,) for name, value in _MODEL.items()} | {"qk_scale": (None, 0)}


def _prefix(config: ViTConfig) -> str:
    return "vision_model." if config.num_classes else ""


HUGGINGFACE_AIMV2 = Layout(
    name="huggingface_aimv2",
    description="Hugging Face's image tower of AIMv2",
    config_class=PlainViTConfig,
    evidence=hf.ending("encoder.layers.0.rms_norm1.weight", "embeddings.patch_embed.weight"),
    infer=_infer,
    rules=_rules,
    required=hf.REQUIRED,
    defaults=lambda known: {},
    fixed=only(
        PlainViTConfig, _FREE, **_FIXED, pos_embed=("learned", "native_sincos_2d"), global_pool=("query", "none")
    ),
    components=lambda config: _components(config, _prefix(config)),
    conditions=_conditions,
    hint=hf.HINT,
    # its own class has no other sizes; timm's way, which has the same weights
    resample=lambda config: "bicubic_antialias",
    prefixes=("vision_model.",),
    prefix=_prefix,
    outside=("visual_projection.",),
    classifier=lambda config: {"global_pool": "avg"},  # as timm's, which are the same
    config_file=_write,
)


def _apple_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    source = "trunk.blocks.{i}"
    return (
        Rule("preprocessor.patchifier.proj.weight", "patch_embed/proj/kernel", CONV),
        Rule("preprocessor.patchifier.proj.bias", "patch_embed/proj/bias"),
        _scale("preprocessor.patchifier.norm", "patch_embed/norm"),
        Rule("preprocessor.pos_embed", "pos_embed"),
        _scale(f"{source}.norm_{{n}}", f"{_TARGET}/norm{{n}}"),
        *linear(f"{source}.attn.{{layer}}", f"{_TARGET}/attn/{{layer}}"),
        *joined((f"{source}.mlp.fc1", f"{source}.mlp.fc3"), f"{_TARGET}/mlp/fc1", (1, 1)),
        *linear(f"{source}.mlp.fc2", f"{_TARGET}/mlp/fc2"),
        _scale("trunk.post_trunk_norm", "norm"),
    )


def _apple_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    block = "trunk.blocks.{i}"
    names = {f"{block}.norm_1": f"{_NAMES.block}.rms_norm1", f"{block}.mlp.fc2": f"{_NAMES.block}.ffn.down_proj"}
    respelled: dict[str, tuple[int, ...]] = dict(shapes)
    for old, new in names.items():
        for name, shape in shapes.items():
            index = name.split(".")[2] if name.startswith("trunk.blocks.") else ""
            respelled[name.replace(old.format(i=index), new.format(i=index))] = shape
    return {
        **hf.block_infer(respelled, _NAMES),
        **hf.patch_infer(shapes, "preprocessor.patchifier.proj.weight"),
        **_MODEL,
        "qkv_bias": any_match(shapes, f"{block}.attn.qkv.bias"),
        "proj_bias": any_match(shapes, f"{block}.attn.proj.bias"),
        "mlp_bias": any_match(shapes, f"{block}.mlp.fc2.bias"),
        "pos_embed": "learned" if any_match(shapes, "preprocessor.pos_embed") else "native_sincos_2d",
        "num_classes": 0,
    }


def _apple_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"norm_eps": 1e-5, "activation": "silu", "global_pool": "avg"}


def _apple_components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    parts = {"norm_1": "norm1", "attn.qkv": "attn/qkv", "attn.proj": "attn/proj", "norm_2": "norm2", "mlp": "mlp"}
    block = "trunk.blocks.{i}"
    return (*((f"{block}.{a}", f"blocks_{{i}}/{b}") for a, b in parts.items()), (block, "blocks_{i}"))


AIMV2 = Layout(
    name="aimv2",
    description="Apple's own AIMv2",
    config_class=PlainViTConfig,
    evidence=named("preprocessor.patchifier.proj", "trunk.blocks.0.norm_1"),
    infer=_apple_infer,
    rules=_apple_rules,
    required=(("num_heads", "image_size"),),
    defaults=_apple_defaults,
    fixed=only(
        PlainViTConfig, _FREE, **_FIXED, pos_embed=("learned", "native_sincos_2d"), global_pool=("avg", "none", "max")
    ),
    components=_apple_components,
    conditions=lambda config: ["num_classes (it has no head)"] if config.num_classes else [],
    resample=lambda config: "bicubic_antialias",
)

AIMV2_LAYOUTS: tuple[Layout, ...] = (AIMV2, HUGGINGFACE_AIMV2)
_FAMILY = Family(
    layout=HUGGINGFACE_AIMV2.name,
    defaults={
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "num_channels": 3, "image_size": 224,
        "patch_size": 14, "intermediate_size": 2816, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    },
    fields=_read,
    # the tensors tell; the last are of Apple's own config.json
    harmless=(*hf.HARMLESS, "qkv_bias", "mlp_bias", "use_head", "is_native", "use_bias", "projection_dropout"),
    part="vision_config",
)  # fmt: skip
AIMV2_FAMILIES: dict[str, Family] = {"aimv2": _FAMILY, "aimv2_vision_model": _FAMILY}
