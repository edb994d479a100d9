"""Layout of the original T2T-ViT (yitu-opensource/T2T-ViT)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import T2TViTConfig, ViTConfig
from vit_flax.convert.layout import Layout, Shapes, any_match, count_blocks, only, ratio_for, vote
from vit_flax.convert.rules import DENSE, ConversionError, Rule

_KERNELS = (7, 3, 3)
_SOURCE, _TARGET = "tokens_to_token.attention{t}", "tokens_to_token/transformer{t}"


def _linear(source: str, target: str) -> tuple[Rule, Rule]:
    return Rule(f"{source}.weight", f"{target}/kernel", DENSE), Rule(f"{source}.bias", f"{target}/bias")


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    if config.tokens_type == "performer":
        tokens = (
            *_linear(f"{_SOURCE}.kqv", f"{_TARGET}/kqv"),
            Rule(f"{_SOURCE}.w", f"{_TARGET}/random_features"),
            *_linear(f"{_SOURCE}.proj", f"{_TARGET}/proj"),
            *_linear(f"{_SOURCE}.mlp.0", f"{_TARGET}/mlp/fc1"),
            *_linear(f"{_SOURCE}.mlp.2", f"{_TARGET}/mlp/fc2"),
        )
    else:
        tokens = (
            *_linear(f"{_SOURCE}.attn.{{part}}", f"{_TARGET}/attn/{{part}}"),
            *_linear(f"{_SOURCE}.mlp.{{part}}", f"{_TARGET}/mlp/{{part}}"),
        )
    return (
        *_norm(f"{_SOURCE}.norm{{n}}", f"{_TARGET}/norm{{n}}"),
        *tokens,
        *_linear("tokens_to_token.project", "tokens_to_token/project"),
        Rule("cls_token", "cls_token"),
        Rule("pos_embed", "pos_embed"),
        *_norm("blocks.{i}.norm{n}", "blocks_{i}/norm{n}"),
        *_linear("blocks.{i}.attn.{part}", "blocks_{i}/attn/{part}"),
        *_linear("blocks.{i}.mlp.{part}", "blocks_{i}/mlp/{part}"),
        *_norm("norm", "norm"),
        *_linear("head", "head"),
    )


def _infer(shapes: Shapes, _known: Mapping[str, Any]) -> dict[str, Any]:
    if any_match(shapes, "tokens_to_token.soft_split{t}.weight"):
        raise ConversionError("layout 't2t_vit': tokens_type='convolution' (soft_split0.weight) is not supported")
    depth = count_blocks(shapes, "blocks.{i}.{a}.{b}.{c}")
    dim = vote(
        shapes,
        ("cls_token", -1),
        ("pos_embed", -1),
        ("norm.weight", 0),
        ("blocks.{i}.norm{n}.weight", 0),
        ("blocks.{i}.mlp.fc1.weight", 1),
    )
    if depth is None or dim is None:
        raise ConversionError("no tensors named blocks.0...: there is no block to read")
    performer = any_match(shapes, f"{_SOURCE}.kqv.weight")
    values: dict[str, Any] = {
        "depth": depth,
        "embed_dim": dim,
        "qkv_bias": any_match(shapes, "blocks.{i}.attn.qkv.bias"),
        "num_classes": vote(shapes, ("head.weight", 0), ("head.bias", 0)) or 0,
        "tokens_type": "performer" if performer else "transformer",
    }
    if not performer:
        values["token_qkv_bias"] = any_match(shapes, f"{_SOURCE}.attn.qkv.bias")
    hidden = vote(shapes, ("blocks.{i}.mlp.fc1.weight", 0), ("blocks.{i}.mlp.fc2.weight", 1))
    if hidden is not None:
        values["mlp_ratio"] = ratio_for(hidden, dim)
    chan = vote(shapes, (f"{_SOURCE}.norm2.weight", 0), (f"{_SOURCE}.proj.bias", 0), (f"{_SOURCE}.attn.proj.bias", 0))
    if chan is not None:
        values["token_chan"] = chan
    first = vote(shapes, ("tokens_to_token.attention1.norm1.weight", 0))
    if first is not None and first % _KERNELS[0] ** 2 == 0:
        values["in_chans"] = first // _KERNELS[0] ** 2
    rows = vote(shapes, ("pos_embed", 1))
    if rows and math.isqrt(rows - 1) ** 2 == rows - 1:  # square images, one token for 16 pixels
        values["image_size"] = 16 * math.isqrt(rows - 1)
    return values


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "softsplit_kernels": _KERNELS,
        "token_num_heads": 1,
        "token_mlp_ratio": 1.0,
        "token_input_scale": values["tokens_type"] == "transformer",
        "pos_embed": "sinusoid",
        "norm_eps": 1e-5,
        "activation": "gelu",
        "value_skip": False,
    }


def _conditions(config: ViTConfig) -> list[str]:
    refusals = []
    height, width = config.image_size
    if height != width or config.num_patches != (height // 16) ** 2:
        refusals.append(f"image_size={config.image_size} (it holds squares of one token for 16 pixels)")
    if config.token_input_scale != (config.tokens_type == "transformer"):
        refusals.append(f"token_input_scale={config.token_input_scale} with tokens_type={config.tokens_type!r}")
    if config.tokens_type == "transformer" and config.token_qkv_bias is not False:
        refusals.append(f"token_qkv_bias={config.token_qkv_bias} (it holds False)")
    return refusals


def _evidence(names: Collection[str]) -> str | None:
    starts = ("tokens_to_token.attention1.", "tokens_to_token.soft_split0.")
    return next((name for name in names if name.startswith(starts)), None)


def _token_components(t: int) -> tuple[tuple[str, str], ...]:
    source, target = _SOURCE.format(t=t), _TARGET.format(t=t)
    parts = ("norm1", "kqv", "proj", "attn.qkv", "attn.proj", "attn", "norm2", "mlp.fc1", "mlp.fc2")
    pairs = tuple((part, part.replace(".", "/")) for part in parts)
    pairs += (("mlp.0", "mlp/fc1"), ("mlp.2", "mlp/fc2"), ("mlp", "mlp"))
    return (*((f"{source}.{a}", f"{target}/{b}") for a, b in pairs), (source, target))


_BLOCK_PARTS = ("norm1", "attn.qkv", "attn.proj", "attn", "norm2", "mlp.fc1", "mlp.fc2", "mlp")

T2T_VIT = Layout(
    name="t2t_vit",
    description="T2T_ViT of yitu-opensource/T2T-ViT",
    config_class=T2TViTConfig,
    evidence=_evidence,
    infer=_infer,
    rules=_rules,
    # the original's constructors change the scale when they are called with pretrained=True
    required=(("num_heads", "qk_scale"), ("image_size", "in_chans", "token_chan")),
    defaults=_defaults,
    fixed=only(
        T2TViTConfig,
        (
            "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio",
            "qkv_bias", "qk_scale", "norm_eps", "token_chan", "tokens_type", "token_qkv_bias", "token_input_scale",
        ),
        pos_embed=("sinusoid",),
        token_num_heads=(1,),
    ),
    conditions=_conditions,
    resample=lambda config: "bicubic",
    heads=(("head", "head"),),
    components=lambda config: (
        *_token_components(1),
        *_token_components(2),
        ("tokens_to_token.project", "tokens_to_token/project"),
        ("tokens_to_token", "tokens_to_token"),
        ("blocks.0:input", "blocks_0:input"),
        *((f"blocks.{{i}}.{part}", f"blocks_{{i}}/{part.replace('.', '/')}") for part in _BLOCK_PARTS),
        ("blocks.{i}", "blocks_{i}"),
        ("norm", "norm"),
        ("head:input", "head:input"),
        ("head", "head"),
    ),
)  # fmt: skip
