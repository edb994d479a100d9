"""Layouts of the tutorial's models: `explained` (ViT_Model) and `explained_t2t` (T2T_ViT)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, T2TViTConfig, ViTConfig, softsplit_size
from vit_flax.convert.layout import Layout, Shapes, any_match, containing, count_blocks, only, ratio_for, vote
from vit_flax.convert.rules import DENSE, ConversionError, Rule, patch_linear


def _transformer_rules(source: str, target: str) -> tuple[Rule, ...]:
    """Returns the rules of an Encoding or TokenTransformer."""
    return (
        Rule(f"{source}.norm{{n}}.weight", f"{target}/norm{{n}}/scale"),
        Rule(f"{source}.norm{{n}}.bias", f"{target}/norm{{n}}/bias"),
        Rule(f"{source}.attn.{{part}}.weight", f"{target}/attn/{{part}}/kernel", DENSE),
        Rule(f"{source}.attn.{{part}}.bias", f"{target}/attn/{{part}}/bias"),
        Rule(f"{source}.neuralnet.{{part}}.weight", f"{target}/mlp/{{part}}/kernel", DENSE),
        Rule(f"{source}.neuralnet.{{part}}.bias", f"{target}/mlp/{{part}}/bias"),
    )


def _backbone_rules(prefix: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{prefix}.cls_token", "cls_token"),
        Rule(f"{prefix}.pos_embed", "pos_embed"),
        *_transformer_rules(f"{prefix}.blocks.{{i}}", "blocks_{i}"),
        Rule(f"{prefix}.norm.weight", "norm/scale"),
        Rule(f"{prefix}.norm.bias", "norm/bias"),
        Rule(f"{prefix}.head.weight", "head/kernel", DENSE),
        Rule(f"{prefix}.head.bias", "head/bias"),
    )


def _transformer_components(source: str, target: str) -> tuple[tuple[str, str], ...]:
    pairs = (
        ("norm1", "norm1"),
        ("attn.qkv", "attn/qkv"),
        ("attn.proj:input", "attn/proj:input"),  # the values, mixed
        ("attn.proj", "attn/proj"),
        ("attn", "attn"),
        ("norm2:input", "norm2:input"),  # the first residual sum
        ("norm2", "norm2"),
        ("neuralnet.fc1", "mlp/fc1"),
        ("neuralnet.act", "mlp/fc2:input"),
        ("neuralnet.fc2", "mlp/fc2"),
        ("neuralnet", "mlp"),
    )
    return (*((f"{source}.{a}", f"{target}/{b}") for a, b in pairs), (source, target))


def _backbone_components(prefix: str) -> tuple[tuple[str, str], ...]:
    return (
        # the first block's input: class token and positions are in place
        (f"{prefix}.blocks.0:input", "blocks_0:input"),
        *_transformer_components(f"{prefix}.blocks.{{i}}", "blocks_{i}"),
        (f"{prefix}.norm", "norm"),
        (f"{prefix}.head:input", "head:input"),
        (f"{prefix}.head", "head"),
    )


def _infer_backbone(shapes: Shapes, prefix: str) -> dict[str, Any]:
    block = f"{prefix}.blocks.{{i}}"
    depth = count_blocks(shapes, f"{block}.{{a}}.{{b}}.{{c}}")
    dim = vote(
        shapes,
        (f"{prefix}.cls_token", -1),
        (f"{prefix}.pos_embed", -1),
        (f"{prefix}.norm.weight", 0),
        (f"{prefix}.head.weight", 1),
        (f"{block}.norm{{n}}.weight", 0),
        (f"{block}.neuralnet.fc1.weight", 1),
    )
    if depth is None or dim is None:
        raise ConversionError(f"no tensors named {prefix}.blocks.0...: there is no block to read")
    values: dict[str, Any] = {
        "depth": depth,
        "embed_dim": dim,
        "qkv_bias": any_match(shapes, f"{block}.attn.qkv.bias"),
        "norm_layer": "layernorm" if any_match(shapes, f"{block}.norm{{n}}.bias", f"{prefix}.norm.bias") else "rmsnorm",
    }
    hidden = vote(
        shapes,
        (f"{block}.neuralnet.fc1.weight", 0),
        (f"{block}.neuralnet.fc1.bias", 0),
        (f"{block}.neuralnet.fc2.weight", 1),
    )
    if hidden is not None:
        values["mlp_ratio"] = ratio_for(hidden, dim)
    classes = vote(shapes, (f"{prefix}.head.weight", 0), (f"{prefix}.head.bias", 0))
    if classes is not None:
        values["num_classes"] = classes
    return values


def _num_tokens(shapes: Shapes, prefix: str) -> int | None:
    rows = vote(shapes, (f"{prefix}.pos_embed", 1))
    return rows - 1 if rows else None


def _image_size(known: Mapping[str, Any]) -> tuple[int, int] | None:
    size = known.get("image_size")
    return (size, size) if isinstance(size, int) else tuple(size) if size is not None else None


def _infer_vit(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    values = _infer_backbone(shapes, "backbone")
    length, tokens = vote(shapes, ("patch_tokens.project.weight", 1)), _num_tokens(shapes, "backbone")
    size = _image_size(known)
    if size is None or length is None:
        return values
    # patches are square, length = C p p and tokens = (H / p) (W / p)
    patch = known.get("patch_size") or (tokens and math.isqrt(size[0] * size[1] // tokens))
    patch = patch if isinstance(patch, int) else patch and patch[0]
    if patch and length % (patch * patch) == 0 and size[0] % patch == 0 and size[1] % patch == 0:
        values["patch_size"], values["in_chans"] = patch, length // (patch * patch)
    return values


def _infer_t2t(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    values = _infer_backbone(shapes, "vit_backbone")
    transformer = "tokens_to_token.transformer{t}"
    chan = vote(
        shapes,
        (f"{transformer}.norm2.weight", 0),
        (f"{transformer}.attn.proj.weight", 0),
        (f"{transformer}.neuralnet.fc2.weight", 0),
    )
    first = vote(
        shapes, ("tokens_to_token.transformer1.norm1.weight", 0), ("tokens_to_token.transformer1.attn.qkv.weight", 1)
    )
    second = vote(
        shapes, ("tokens_to_token.transformer2.norm1.weight", 0), ("tokens_to_token.transformer2.attn.qkv.weight", 1)
    )
    third = vote(shapes, ("tokens_to_token.project.weight", 1))
    hidden = vote(shapes, (f"{transformer}.neuralnet.fc1.weight", 0), (f"{transformer}.neuralnet.fc1.bias", 0))
    if chan is None:
        return values
    values["token_chan"] = chan
    if hidden is not None:
        values["token_mlp_ratio"] = ratio_for(hidden, chan)
    kernels = known.get("softsplit_kernels")
    if kernels is None and first and second and third and (size := _image_size(known)):
        rest = math.isqrt(second // chan), math.isqrt(third // chan)
        tokens = _num_tokens(shapes, "vit_backbone")
        # first = C k k: the kernel whose soft splits leave as many tokens as there are positions, if just one does
        fitting = [
            (k, *rest)
            for k in range(1, math.isqrt(first) + 1)
            if first % (k * k) == 0 and _tokens_after(size, (k, *rest)) == tokens
        ]
        if len(fitting) == 1:
            kernels = values["softsplit_kernels"] = fitting[0]
    if kernels is not None and first and first % (kernels[0] ** 2) == 0:
        values["in_chans"] = first // kernels[0] ** 2
    return values


def _tokens_after(size: tuple[int, int], kernels: tuple[int, ...]) -> int:
    for kernel in kernels:
        size = (softsplit_size(size[0], kernel), softsplit_size(size[1], kernel)) if kernel else (0, 0)
    return size[0] * size[1] if min(size) > 0 else 0


def _vit_rules(config: ViTConfig) -> tuple[Rule, ...]:
    return (
        Rule(
            "patch_tokens.project.weight", "patch_embed/proj/kernel", patch_linear(config.in_chans, config.patch_size)
        ),
        Rule("patch_tokens.project.bias", "patch_embed/proj/bias"),
        *_backbone_rules("backbone"),
    )


def _t2t_rules(_config: ViTConfig) -> tuple[Rule, ...]:
    return (
        *_transformer_rules("tokens_to_token.transformer{t}", "tokens_to_token/transformer{t}"),
        Rule("tokens_to_token.project.weight", "tokens_to_token/project/kernel", DENSE),
        Rule("tokens_to_token.project.bias", "tokens_to_token/project/bias"),
        *_backbone_rules("vit_backbone"),
    )


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "activation": "gelu",
        "qk_scale": None,
        "value_skip": True,
        "pos_embed": "sinusoid",
        "norm_eps": 1e-5 if values["norm_layer"] == "layernorm" else None,  # torch's own defaults
    }


_FREE = (
    "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "qk_scale", "activation", "norm_layer", "norm_eps",
)  # fmt: skip
_FIXED = {"value_skip": (True,), "pos_embed": ("sinusoid",)}

EXPLAINED = Layout(
    name="explained",
    description="the tutorial's ViT_Model (Vision Transformers, Explained)",
    config_class=PlainViTConfig,
    evidence=containing("backbone.blocks.0.neuralnet."),
    infer=_infer_vit,
    rules=_vit_rules,
    required=(("num_heads", "image_size"), ("patch_size", "in_chans")),
    heads=(("backbone.head", "backbone.head"),),
    defaults=_defaults,
    fixed=only(PlainViTConfig, _FREE, **_FIXED),
    components=lambda config: (
        ("patch_tokens.project", "patch_embed/proj"),
        ("patch_tokens", "patch_embed"),
        *_backbone_components("backbone"),
    ),
)

EXPLAINED_T2T = Layout(
    name="explained_t2t",
    description="the tutorial's T2T_ViT",
    config_class=T2TViTConfig,
    evidence=containing("vit_backbone.", "tokens_to_token.transformer1."),
    infer=_infer_t2t,
    rules=_t2t_rules,
    required=(("num_heads", "image_size"), ("softsplit_kernels", "in_chans")),
    heads=(("vit_backbone.head", "vit_backbone.head"),),
    defaults=_defaults,
    fixed=only(
        T2TViTConfig, (*_FREE, "softsplit_kernels", "token_chan", "token_num_heads", "token_mlp_ratio"), **_FIXED
    ),
    components=lambda config: (
        *_transformer_components("tokens_to_token.transformer1", "tokens_to_token/transformer1"),
        *_transformer_components("tokens_to_token.transformer2", "tokens_to_token/transformer2"),
        ("tokens_to_token.project", "tokens_to_token/project"),
        ("tokens_to_token", "tokens_to_token"),
        *_backbone_components("vit_backbone"),
    ),
)
