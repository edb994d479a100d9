"""The layout of Hugging Face's ViT: ViTModel, with its pooler or without, and ViTForImageClassification.

On disk the names are those of transformers 4, in memory since version 5 others: both are read. `huggingface_vit` writes
the former, which every version loads, `huggingface_vit_memory` the latter, for load_state_dict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert.config_files import Family, activation
from vit_flax.convert.layout import Layout, Shapes, any_match, count_blocks, only, ratio_for, vote
from vit_flax.convert.rules import CONV, ConversionError, Drop, Rule
from vit_flax.convert.timm import joined, linear, norm

# names inside a block: on disk, in memory
_BLOCK = "encoder.layer.{i}", "layers.{i}"
_PARTS = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm_before", "layernorm_before"),
    ("layernorm_after", "layernorm_after"),
)
_DISK, _MEMORY = 0, 1


def _prefix(config: ViTConfig) -> str:
    # transformers puts the name of the base model before its tensors where a head stands beside it
    return "vit." if config.num_classes else ""


def _rules(config: ViTConfig, side: int) -> tuple[Rule | Drop, ...]:
    base = _prefix(config)
    block = base + _BLOCK[side]
    query, key, value, out, fc1, fc2, before, after = (f"{block}.{part[side]}" for part in _PARTS)
    pooler: tuple[Rule | Drop, ...] = linear(f"{base}pooler.dense", "pre_logits")
    if config.num_classes:
        pooler = (Drop(f"{base}pooler.dense.{{part}}", "ViTForImageClassification does not use the pooler"),)
    return (
        Rule(f"{base}embeddings.cls_token", "cls_token"),
        Rule(f"{base}embeddings.mask_token", "mask_token"),
        Rule(f"{base}embeddings.position_embeddings", "pos_embed"),
        Rule(f"{base}embeddings.patch_embeddings.projection.weight", "patch_embed/proj/kernel", CONV),
        Rule(f"{base}embeddings.patch_embeddings.projection.bias", "patch_embed/proj/bias"),
        *norm(before, "blocks_{i}/norm1"),
        *joined((query, key, value), "blocks_{i}/attn/qkv", (1, 1, 1)),
        *linear(out, "blocks_{i}/attn/proj"),
        *norm(after, "blocks_{i}/norm2"),
        *linear(fc1, "blocks_{i}/mlp/fc1"),
        *linear(fc2, "blocks_{i}/mlp/fc2"),
        *norm(f"{base}layernorm", "norm"),
        *pooler,
        *linear("classifier", "head"),
    )


def _components(config: ViTConfig, side: int) -> tuple[tuple[str, str], ...]:
    base = _prefix(config)
    block = base + _BLOCK[side]
    *_, out, fc1, fc2, before, after = (f"{block}.{part[side]}" for part in _PARTS)
    inside = (
        (before, "norm1"),
        (f"{out}:input", "attn/proj:input"),
        (out, "attn/proj"),
        (f"{after}:input", "norm2:input"),
        (after, "norm2"),
        (fc1, "mlp/fc1"),
        (f"{fc2}:input", "mlp/fc2:input"),
        (fc2, "mlp/fc2"),
    )
    return (
        (f"{base}embeddings.patch_embeddings", "patch_embed"),
        (f"{(base + _BLOCK[_MEMORY]).format(i=0)}:input", "blocks_0:input"),
        *((torch, f"blocks_{{i}}/{linen}") for torch, linen in inside),
        (base + _BLOCK[_MEMORY], "blocks_{i}"),
        (f"{base}layernorm", "norm"),
        *((("classifier:input", "head:input"), ("classifier", "head")) if config.num_classes else ()),
    )


def _aliases(read: int, written: int) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"{base}{_BLOCK[read]}.{part[read]}.{{what}}", f"{base}{_BLOCK[written]}.{part[written]}.{{what}}")
        for base in ("vit.", "")
        for part in _PARTS
    )


def _evidence(side: int) -> Any:
    part = f"{_BLOCK[side]}.{_PARTS[0][side]}.weight".format(i=0)

    def evidence(names: Collection[str]) -> str | None:
        blocks = [name for name in (part, f"vit.{part}") if name in names]
        # DeiT and others have the same blocks, and tokens or tables besides
        beside = [name for name in names if name.removeprefix("vit.") in ("embeddings.position_embeddings",)]
        strange = any("distillation" in name or "decoder" in name or "lambda" in name for name in names)
        return blocks[0] if blocks and beside and not strange else None

    return evidence


def _infer(shapes: Shapes, known: Mapping[str, Any], side: int) -> dict[str, Any]:
    shapes = {name.removeprefix("vit."): shape for name, shape in shapes.items()}
    block = _BLOCK[side]
    depth = count_blocks(shapes, f"{block}.layernorm_before.weight")
    dim = vote(shapes, (f"{block}.layernorm_{{n}}.weight", 0), ("layernorm.weight", 0), ("embeddings.cls_token", -1))
    if depth is None or dim is None:
        raise ConversionError(f"no tensors named {block.format(i=0)}...: there is no block to read")
    classes = vote(shapes, ("classifier.weight", 0), ("classifier.bias", 0)) or 0
    values: dict[str, Any] = {
        "depth": depth,
        "embed_dim": dim,
        "num_classes": classes,
        "qkv_bias": any_match(shapes, f"{block}.{_PARTS[0][side]}.bias"),
        "mask_token": any_match(shapes, "embeddings.mask_token"),
        "representation_size": None if classes else vote(shapes, ("pooler.dense.weight", 0)),
    }
    hidden = vote(shapes, (f"{block}.{_PARTS[4][side]}.weight", 0), (f"{block}.{_PARTS[5][side]}.weight", 1))
    if hidden is not None:
        values["mlp_ratio"] = ratio_for(hidden, dim)
    kernel = shapes.get("embeddings.patch_embeddings.projection.weight", ())
    if len(kernel) == 4:
        values["in_chans"], values["patch_size"] = kernel[1], tuple(kernel[2:])
    return values


def _family_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "embed_dim": values["hidden_size"],
        "depth": values["num_hidden_layers"],
        "num_heads": values["num_attention_heads"],
        "mlp_ratio": ratio_for(values["intermediate_size"], values["hidden_size"]),
        "activation": activation(values["hidden_act"]),
        "norm_eps": values["layer_norm_eps"],
        "image_size": values["image_size"],
        "patch_size": values["patch_size"],
        "in_chans": values["num_channels"],
        "qkv_bias": values["qkv_bias"],
    }


VIT = Family(
    layout="huggingface_vit",
    defaults={
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3,
        "qkv_bias": True,
    },
    fields=_family_fields,
    only={"pooler_act": ("tanh",)},
    harmless=("encoder_stride", "pooler_output_size"),  # the pooler's width is its tensor's
)  # fmt: skip

HUGGINGFACE_VIT = Layout(
    name="huggingface_vit",
    description="transformers' ViTModel and ViTForImageClassification, as saved",
    config_class=ViTConfig,
    evidence=lambda names: _evidence(_DISK)(names) or _evidence(_MEMORY)(names),
    infer=lambda shapes, known: _infer(shapes, known, _DISK),
    rules=lambda config: _rules(config, _DISK),
    required=(("num_heads", "image_size", "norm_eps", "activation"),),
    defaults=lambda values: {},
    fixed=only(
        ViTConfig,
        (
            "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio",
            "qkv_bias", "activation", "norm_eps", "representation_size", "mask_token",
        ),
    ),
    hint="; or put the model's config.json beside the weights",
    conditions=lambda config: (
        ["representation_size with num_classes (ViTForImageClassification has no pooler)"]
        if config.num_classes and config.representation_size
        else []
    ),
    components=lambda config: _components(config, _MEMORY),
    resample=lambda config: "bicubic",
    aliases=_aliases(_MEMORY, _DISK),
)  # fmt: skip

HUGGINGFACE_VIT_MEMORY = dataclasses.replace(
    HUGGINGFACE_VIT,
    name="huggingface_vit_memory",
    description="transformers' ViTModel and ViTForImageClassification, as version 5 has them in memory",
    evidence=lambda names: None,  # the other reads these names too
    infer=lambda shapes, known: _infer(shapes, known, _MEMORY),
    rules=lambda config: _rules(config, _MEMORY),
    aliases=_aliases(_DISK, _MEMORY),
)
