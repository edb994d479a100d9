"""Layout of torchvision.models.vision_transformer (vit_b_16 and its family)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert.layout import Layout, Shapes, any_match, containing, count_blocks, only, ratio_for, vote
from vit_flax.convert.rules import CONV, DENSE, ConversionError, Rule

_LAYER = "encoder.layers.encoder_layer_{i}"


def _rules(_config: ViTConfig) -> tuple[Rule, ...]:
    return (
        Rule("conv_proj.weight", "patch_embed/proj/kernel", CONV),
        Rule("conv_proj.bias", "patch_embed/proj/bias"),
        Rule("class_token", "cls_token"),
        Rule("encoder.pos_embedding", "pos_embed"),
        Rule(f"{_LAYER}.ln_{{n}}.weight", "blocks_{i}/norm{n}/scale"),
        Rule(f"{_LAYER}.ln_{{n}}.bias", "blocks_{i}/norm{n}/bias"),
        Rule(f"{_LAYER}.self_attention.in_proj_weight", "blocks_{i}/attn/qkv/kernel", DENSE),
        Rule(f"{_LAYER}.self_attention.in_proj_bias", "blocks_{i}/attn/qkv/bias"),
        Rule(f"{_LAYER}.self_attention.out_proj.weight", "blocks_{i}/attn/proj/kernel", DENSE),
        Rule(f"{_LAYER}.self_attention.out_proj.bias", "blocks_{i}/attn/proj/bias"),
        Rule(f"{_LAYER}.mlp.0.weight", "blocks_{i}/mlp/fc1/kernel", DENSE),
        Rule(f"{_LAYER}.mlp.0.bias", "blocks_{i}/mlp/fc1/bias"),
        Rule(f"{_LAYER}.mlp.3.weight", "blocks_{i}/mlp/fc2/kernel", DENSE),
        Rule(f"{_LAYER}.mlp.3.bias", "blocks_{i}/mlp/fc2/bias"),
        Rule("encoder.ln.weight", "norm/scale"),
        Rule("encoder.ln.bias", "norm/bias"),
        Rule("heads.pre_logits.weight", "pre_logits/kernel", DENSE),
        Rule("heads.pre_logits.bias", "pre_logits/bias"),
        Rule("heads.head.weight", "head/kernel", DENSE),
        Rule("heads.head.bias", "head/bias"),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    if any_match(shapes, "conv_proj.{layer}.weight", "conv_proj.{layer}.{part}.weight"):
        raise ConversionError("layout 'torchvision': a convolutional stem (conv_stem_configs) is not supported")
    depth = count_blocks(shapes, f"{_LAYER}.{{a}}.{{b}}")
    dim = vote(
        shapes,
        ("class_token", -1),
        ("encoder.pos_embedding", -1),
        ("encoder.ln.weight", 0),
        (f"{_LAYER}.ln_{{n}}.weight", 0),
        (f"{_LAYER}.mlp.0.weight", 1),
    )
    if depth is None or dim is None:
        raise ConversionError("no tensors named encoder.layers.encoder_layer_0...: there is no block to read")
    values: dict[str, Any] = {"depth": depth, "embed_dim": dim}
    hidden = vote(shapes, (f"{_LAYER}.mlp.0.weight", 0), (f"{_LAYER}.mlp.0.bias", 0), (f"{_LAYER}.mlp.3.weight", 1))
    if hidden is not None:
        values["mlp_ratio"] = ratio_for(hidden, dim)
    classes = vote(shapes, ("heads.head.weight", 0), ("heads.head.bias", 0))
    values["num_classes"] = classes or 0
    values["representation_size"] = vote(shapes, ("heads.pre_logits.weight", 0), ("heads.pre_logits.bias", 0))
    patch, chans = vote(shapes, ("conv_proj.weight", -1)), vote(shapes, ("conv_proj.weight", 1))
    if patch and chans:
        values["patch_size"], values["in_chans"] = patch, chans
    rows = vote(shapes, ("encoder.pos_embedding", 1))
    if rows and patch and math.isqrt(rows - 1) ** 2 == rows - 1:  # images are square there
        values["image_size"] = math.isqrt(rows - 1) * patch
    return values


def _conditions(config: ViTConfig) -> list[str]:
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    return [f"{name}={size} (it holds squares)" for name, size in sizes.items() if size[0] != size[1]]


def _layer_components() -> tuple[tuple[str, str], ...]:
    pairs = (("ln_1", "norm1"), ("self_attention", "attn"), ("ln_2", "norm2"))
    pairs += (("mlp.0", "mlp/fc1"), ("mlp.3", "mlp/fc2"), ("mlp", "mlp"))
    return (*((f"{_LAYER}.{a}", f"blocks_{{i}}/{b}") for a, b in pairs), (_LAYER, "blocks_{i}"))


TORCHVISION = Layout(
    name="torchvision",
    description="torchvision.models.vision_transformer.VisionTransformer",
    config_class=PlainViTConfig,
    evidence=containing("conv_proj.", "encoder.layers.encoder_layer_0."),
    infer=_infer,
    rules=_rules,
    required=(("num_heads", "image_size", "patch_size", "in_chans"),),
    defaults=lambda _: {"norm_eps": 1e-6, "activation": "gelu"},
    fixed=only(
        PlainViTConfig,
        (
            "image_size",
            "patch_size",
            "in_chans",
            "num_classes",
            "embed_dim",
            "depth",
            "num_heads",
            "mlp_ratio",
            "norm_eps",
            "representation_size",
        ),
    ),
    conditions=_conditions,
    resample=lambda config: "bicubic_corners",
    heads=(("heads.head", "heads.head"), ("heads", "heads.head")),
    aliases=(
        (f"{_LAYER}.mlp.linear_1.{{part}}", f"{_LAYER}.mlp.0.{{part}}"),
        (f"{_LAYER}.mlp.linear_2.{{part}}", f"{_LAYER}.mlp.3.{{part}}"),
    ),
    components=lambda config: (
        ("encoder.layers.encoder_layer_0:input", "blocks_0:input"),
        *_layer_components(),
        ("encoder.ln", "norm"),
        ("heads.pre_logits", "pre_logits"),
        ("heads.head:input", "head:input"),
        ("heads.head", "head"),
    ),
)
