"""Layouts of Google's JAX models: `google_npz` (vision_transformer, AugReg), `big_vision` and `big_vision_scan`.

Their numerics are flax.linen's defaults: a GELU through tanh and a LayerNorm epsilon of 1e-6. Others read the same
weights otherwise (timm with the exact GELU); a preset of theirs or activation='gelu' asks for that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert.layout import Layout, Shapes, any_match, count_blocks, only, ratio_for, vote
from vit_flax.convert.rules import ConversionError, Rule, join_heads, merge_heads

_BLOCK = "Transformer/encoderblock_{i}"
POSITIONS = "pos_embedding"
_OLD_PARTS = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
PARTS = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
_PROJECTIONS = ("query", "key", "value")


def _attention_rules(source: str, qkv: str, out: str, heads: int) -> tuple[Rule, ...]:
    return (
        Rule(tuple(f"{source}/{name}/kernel" for name in _PROJECTIONS), f"{qkv}/kernel", join_heads(heads)),
        Rule(tuple(f"{source}/{name}/bias" for name in _PROJECTIONS), f"{qkv}/bias", join_heads(heads)),
        Rule(f"{source}/out/kernel", f"{out}/kernel", merge_heads(heads)),
        Rule(f"{source}/out/bias", f"{out}/bias"),
    )


def _mlp_rules(source: str, target: str) -> tuple[Rule, ...]:
    names = (("Dense_0", "fc1"), ("Dense_1", "fc2"))
    return tuple(Rule(f"{source}/{a}/{part}", f"{target}/{b}/{part}") for a, b in names for part in ("kernel", "bias"))


def same(source: str, target: str, *parts: str) -> tuple[Rule, ...]:
    """Returns the rules of a module whose parameters are called alike."""
    return tuple(Rule(f"{source}/{part}", f"{target}/{part}") for part in parts)


def block_rules(block: str, parts: tuple[str, ...], heads: int) -> tuple[Rule, ...]:
    """Returns the rules of the blocks, which `block` names."""
    norm1, attention, norm2, mlp = (f"{block}/{part}" for part in parts)
    return (
        *same(norm1, "blocks_{i}/norm1", "scale", "bias"),
        *_attention_rules(attention, "blocks_{i}/attn/qkv", "blocks_{i}/attn/proj", heads),
        *same(norm2, "blocks_{i}/norm2", "scale", "bias"),
        *_mlp_rules(mlp, "blocks_{i}/mlp"),
    )


def pool_rules(heads: int) -> tuple[Rule, ...]:
    """Returns the rules of the pooling by attention."""
    pool = "MAPHead_0"
    return (
        Rule(f"{pool}/probe", "attn_pool/latent"),
        *_attention_rules(f"{pool}/{PARTS[1]}", "attn_pool/qkv", "attn_pool/proj", heads),
        *same(f"{pool}/LayerNorm_0", "attn_pool/norm", "scale", "bias"),
        *_mlp_rules(f"{pool}/MlpBlock_0", "attn_pool/mlp"),
    )


def _shared_rules(config: ViTConfig, pos_embed: str, parts: tuple[str, ...]) -> tuple[Rule, ...]:
    return (
        *same("embedding", "patch_embed/proj", "kernel", "bias"),
        Rule("cls", "cls_token"),
        Rule(pos_embed, "pos_embed"),
        *block_rules(_BLOCK, parts, config.num_heads),
        *same("Transformer/encoder_norm", "norm", "scale", "bias"),
        *same("pre_logits", "pre_logits", "kernel", "bias"),
        *same("head", "head", "kernel", "bias"),
    )


def _google_rules(config: ViTConfig) -> tuple[Rule, ...]:
    return _shared_rules(config, "Transformer/posembed_input/pos_embedding", _OLD_PARTS)


def _big_vision_rules(config: ViTConfig) -> tuple[Rule, ...]:
    return (*_shared_rules(config, POSITIONS, PARTS), *pool_rules(config.num_heads))


def infer_shared(shapes: Shapes, layout: str, parts: tuple[str, ...], padded: bool = False) -> dict[str, Any]:
    """Returns what the tensors tell; `padded`: of a NaFlex model, whose patches go through a linear layer."""
    norm1, attention, norm2, mlp = (f"{_BLOCK}/{part}" for part in parts)
    if any_match(shapes, "conv_root/kernel"):
        raise ConversionError(f"layout {layout!r}: a hybrid (conv_root/kernel), whose tokens come from a ResNet")
    kernel = shapes.get("embedding/kernel", ())
    if len(kernel) == 2 and not padded:
        raise ConversionError(f"layout {layout!r}: embedding/kernel of two axes is a NaFlex model's")
    depth = count_blocks(shapes, f"{norm1}/{{part}}")
    dim = vote(
        shapes,
        ("cls", -1),
        ("Transformer/encoder_norm/scale", 0),
        (f"{norm1}/scale", 0),
        (f"{norm2}/scale", 0),
        (f"{mlp}/Dense_0/kernel", 0),
    )
    if depth is None or dim is None:
        raise ConversionError(f"no tensors named Transformer/encoderblock_0/{parts[0]}...: there is no block to read")
    values: dict[str, Any] = {
        "depth": depth,
        "embed_dim": dim,
        "qkv_bias": any_match(shapes, f"{attention}/query/bias"),
        "class_token": "cls" in shapes,
        "num_classes": vote(shapes, ("head/kernel", 1), ("head/bias", 0)) or 0,
        "representation_size": vote(shapes, ("pre_logits/kernel", 1), ("pre_logits/bias", 0)),
    }
    heads = vote(shapes, *((f"{attention}/{name}/kernel", 1) for name in _PROJECTIONS))
    if heads is not None:
        values["num_heads"] = heads
    hidden = vote(shapes, (f"{mlp}/Dense_0/kernel", 1), (f"{mlp}/Dense_1/kernel", 0), (f"{mlp}/Dense_0/bias", 0))
    if hidden is not None:
        values["mlp_ratio"] = ratio_for(hidden, dim)
    if len(kernel) == 4:
        values["patch_size"], values["in_chans"] = tuple(kernel[:2]), kernel[2]
    return values


def _square_image(rows: int, values: Mapping[str, Any]) -> dict[str, Any]:
    # Google's own code takes the stored grid for square
    side = math.isqrt(rows)
    if side * side != rows or "patch_size" not in values:
        return {}
    return {"image_size": (side * values["patch_size"][0], side * values["patch_size"][1])}


def _infer_google(shapes: Shapes, _known: Mapping[str, Any]) -> dict[str, Any]:
    values = infer_shared(shapes, "google_npz", _OLD_PARTS)
    rows = vote(shapes, ("Transformer/posembed_input/pos_embedding", 1))
    if values["class_token"]:
        values["global_pool"] = "token"
    return values | (_square_image(rows - values["class_token"], values) if rows else {})


def _infer_big_vision(shapes: Shapes, _known: Mapping[str, Any]) -> dict[str, Any]:
    values = infer_shared(shapes, "big_vision", PARTS)
    rows = vote(shapes, (POSITIONS, 1))
    values["pos_embed"] = "learned" if rows else "simple_sincos_2d"
    if any_match(shapes, "MAPHead_0/probe"):
        values["global_pool"] = "map"
    elif values["class_token"]:
        values["global_pool"] = "token"
    if rows is None:
        return values
    # before 2022 the class token had a position too
    values["no_embed_class"] = values["class_token"] and math.isqrt(rows) ** 2 == rows
    return values | _square_image(rows - (values["class_token"] and not values["no_embed_class"]), values)


def _evidence(old: bool, scanned: bool = False) -> Any:
    block = "Transformer/encoderblock/" if scanned else "Transformer/encoderblock_0/"
    attention = f"{block}{(_OLD_PARTS if old else PARTS)[1]}/"

    def evidence(names: Collection[str]) -> str | None:
        return next((name for name in names if name.startswith(attention)), None)

    return evidence


def _conditions(config: ViTConfig) -> list[str]:
    if config.class_token == (config.global_pool == "token"):
        return []
    return [
        f"class_token={config.class_token} with global_pool={config.global_pool!r} (a class token is what is pooled)"
    ]


# fields that both layouts hold
FREE = (
    "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "class_token", "representation_size",
)  # fmt: skip
ACTIVATIONS = ("gelu_tanh", "gelu")  # Google's own, and that of others who use the same weights

GOOGLE_NPZ = Layout(
    name="google_npz",
    description="google-research/vision_transformer's .npz files (ViT, AugReg)",
    config_class=PlainViTConfig,
    evidence=_evidence(old=True),
    infer=_infer_google,
    rules=_google_rules,
    required=(("image_size", "global_pool"), ("num_heads", "patch_size", "in_chans")),
    defaults=lambda _: {"norm_eps": 1e-6, "activation": "gelu_tanh"},
    fixed=only(PlainViTConfig, FREE, activation=ACTIVATIONS, global_pool=("token", "avg", "none")),
    conditions=_conditions,
    resample=lambda config: "zoom",
)

BIG_VISION = Layout(
    name="big_vision",
    description="google-research/big_vision's .npz files (ViT, SigLIP)",
    config_class=PlainViTConfig,
    evidence=_evidence(old=False),
    infer=_infer_big_vision,
    rules=_big_vision_rules,
    required=GOOGLE_NPZ.required,
    defaults=GOOGLE_NPZ.defaults,
    fixed=only(
        PlainViTConfig,
        (*FREE, "no_embed_class"),
        activation=ACTIVATIONS,
        global_pool=("token", "avg", "map"),
        pos_embed=("learned", "simple_sincos_2d"),
    ),
    conditions=_conditions,
    resample=lambda config: "zoom",
    aliases=(
        ("Transformer/pos_embedding", POSITIONS),
        ("Transformer/posembed_input/pos_embedding", POSITIONS),
        ("probe", "MAPHead_0/probe"),
        ("LayerNorm_0/{part}", "MAPHead_0/LayerNorm_0/{part}"),
        ("MlpBlock_0/{layer}/{part}", "MAPHead_0/MlpBlock_0/{layer}/{part}"),
        (f"{PARTS[1]}/{{layer}}/{{part}}", f"MAPHead_0/{PARTS[1]}/{{layer}}/{{part}}"),
    ),
)

BIG_VISION_SCAN = dataclasses.replace(
    BIG_VISION,
    name="big_vision_scan",
    description="the same with scanned layers: one array for all blocks",
    evidence=_evidence(old=False, scanned=True),
    stack=("Transformer/encoderblock",),
)
