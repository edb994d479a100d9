"""Layouts of vit-pytorch: `lucidrains` (vit_pytorch.ViT) and `simple_vit` (vit_pytorch.SimpleViT)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_flax.config import LucidrainsViTConfig, ViTConfig
from vit_flax.convert.layout import Layout, Shapes, any_match, containing, count_blocks, only, ratio_for, vote
from vit_flax.convert.rules import DENSE, UNBATCHED, ConversionError, Drop, Rule

_LAYER = "transformer.layers.{i}"
_FREE = (
    "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "attn_head_dim",
    "mlp_ratio",
)  # fmt: skip


def _shared_rules(out: str, last: str, head: str) -> tuple[Rule, ...]:
    return (
        Rule("to_patch_embedding.1.weight", "patch_embed/patch_norm/scale"),
        Rule("to_patch_embedding.1.bias", "patch_embed/patch_norm/bias"),
        Rule("to_patch_embedding.2.weight", "patch_embed/proj/kernel", DENSE),
        Rule("to_patch_embedding.2.bias", "patch_embed/proj/bias"),
        Rule("to_patch_embedding.3.weight", "patch_embed/norm/scale"),
        Rule("to_patch_embedding.3.bias", "patch_embed/norm/bias"),
        Rule(f"{_LAYER}.0.norm.weight", "blocks_{i}/norm1/scale"),
        Rule(f"{_LAYER}.0.norm.bias", "blocks_{i}/norm1/bias"),
        Rule(f"{_LAYER}.0.to_qkv.weight", "blocks_{i}/attn/qkv/kernel", DENSE),
        Rule(f"{_LAYER}.0.{out}.weight", "blocks_{i}/attn/proj/kernel", DENSE),
        Rule(f"{_LAYER}.0.{out}.bias", "blocks_{i}/attn/proj/bias"),
        Rule(f"{_LAYER}.1.net.0.weight", "blocks_{i}/norm2/scale"),
        Rule(f"{_LAYER}.1.net.0.bias", "blocks_{i}/norm2/bias"),
        Rule(f"{_LAYER}.1.net.1.weight", "blocks_{i}/mlp/fc1/kernel", DENSE),
        Rule(f"{_LAYER}.1.net.1.bias", "blocks_{i}/mlp/fc1/bias"),
        Rule(f"{_LAYER}.1.net.{last}.weight", "blocks_{i}/mlp/fc2/kernel", DENSE),
        Rule(f"{_LAYER}.1.net.{last}.bias", "blocks_{i}/mlp/fc2/bias"),
        Rule("transformer.norm.weight", "norm/scale"),
        Rule("transformer.norm.bias", "norm/bias"),
        Rule(f"{head}.weight", "head/kernel", DENSE),
        Rule(f"{head}.bias", "head/bias"),
    )


def _vit_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    empty = np.zeros((0, config.embed_dim), np.float32)
    cls_token = (
        Rule("cls_token", "cls_token", UNBATCHED)
        if config.class_token
        else Drop("cls_token", "empty where the mean is pooled", restored=empty)
    )
    return (*_shared_rules("to_out.0", "4", "mlp_head"), cls_token, Rule("pos_embedding", "pos_embed", UNBATCHED))


def _simple_rules(_config: ViTConfig) -> tuple[Rule, ...]:
    return _shared_rules("to_out", "3", "linear_head")


def _infer_shared(shapes: Shapes, known: Mapping[str, Any], last: str, head: str) -> dict[str, Any]:
    depth = count_blocks(shapes, f"{_LAYER}.{{a}}.{{b}}.{{c}}")
    dim = vote(
        shapes,
        ("transformer.norm.weight", 0),
        ("to_patch_embedding.2.weight", 0),
        (f"{_LAYER}.0.norm.weight", 0),
        (f"{_LAYER}.0.to_qkv.weight", 1),
        (f"{_LAYER}.1.net.1.weight", 1),
    )
    if depth is None or dim is None:
        raise ConversionError("no tensors named transformer.layers.0...: there is no block to read")
    values: dict[str, Any] = {"depth": depth, "embed_dim": dim, "qkv_bias": False}
    hidden = vote(shapes, (f"{_LAYER}.1.net.1.weight", 0), (f"{_LAYER}.1.net.{last}.weight", 1))
    if hidden is not None:
        values["mlp_ratio"] = ratio_for(hidden, dim)
    values["num_classes"] = vote(shapes, (f"{head}.weight", 0), (f"{head}.bias", 0)) or 0
    fused = vote(shapes, (f"{_LAYER}.0.to_qkv.weight", 0))
    for one, other in (("num_heads", "attn_head_dim"), ("attn_head_dim", "num_heads")):
        if fused and isinstance(known.get(one), int) and known[one] > 0 and fused // 3 % known[one] == 0:
            values[other] = fused // 3 // known[one]
    length, patch = vote(shapes, ("to_patch_embedding.2.weight", 1)), known.get("patch_size")
    if length and patch:
        area = patch * patch if isinstance(patch, int) else math.prod(patch)
        if area and length % area == 0:
            values["in_chans"] = length // area
    return values


def _infer_vit(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    if any_match(shapes, f"{_LAYER}.{{a}}.fn.to_qkv.weight"):
        raise ConversionError(
            "layout 'lucidrains': names of an old vit-pytorch (layers.0.0.fn...), whose head normalises after pooling; "
            "they are not supported"
        )
    old = [name for name in ("cls_token", "pos_embedding") if len(shapes.get(name, ())) == 3]
    if old:
        raise ConversionError(
            f"layout 'lucidrains': {' and '.join(old)} of three axes come from an older vit-pytorch, whose pool='mean' "
            "averages the class token too; if the model has pool='cls', drop the first axis of both and load again"
        )
    values = _infer_shared(shapes, known, "4", "mlp_head")
    class_token = vote(shapes, ("cls_token", 0))
    if class_token is not None:
        values["class_token"] = class_token == 1
    values["global_pool"] = "none" if not values["num_classes"] else "token" if class_token else "avg"
    values["attn_proj"] = any_match(shapes, f"{_LAYER}.0.to_out.0.weight")
    return values


def _infer_simple(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    return _infer_shared(shapes, known, "3", "linear_head")


def _vit_refusals(config: ViTConfig) -> list[str]:
    pool = "none" if not config.num_classes else "token" if config.class_token else "avg"
    refusals = [] if config.global_pool == pool else [f"global_pool={config.global_pool!r} (it holds {pool!r} here)"]
    proj = not (config.num_heads == 1 and config.attn_head_dim == config.embed_dim)
    return refusals + ([] if config.attn_proj == proj else [f"attn_proj={config.attn_proj} (it holds {proj} here)"])


def _simple_refusals(config: ViTConfig) -> list[str]:
    return [] if config.num_classes else ["num_classes=0 (it holds a head)"]


def _components(first: str, out: str, last: str, head: str) -> tuple[tuple[str, str], ...]:
    pairs = (
        ("0.norm", "norm1"), ("0.to_qkv", "attn/qkv"), (f"0.{out}", "attn/proj"), ("0", "attn"), ("1.net.0", "norm2"),
        ("1.net.1", "mlp/fc1"), (f"1.net.{last}", "mlp/fc2"), ("1", "mlp"),
    )  # fmt: skip
    return (
        ("to_patch_embedding.1", "patch_embed/patch_norm"),
        ("to_patch_embedding.2", "patch_embed/proj"),
        ("to_patch_embedding", "patch_embed"),
        (first, "blocks_0:input"),
        *((f"{_LAYER}.{a}", f"blocks_{{i}}/{b}") for a, b in pairs),
        ("transformer.norm", "norm"),
        (f"{head}:input", "head:input"),
        (head, "head"),
    )


_REQUIRED = (("num_heads", "image_size", "patch_size"), ("attn_head_dim", "in_chans"))

LUCIDRAINS = Layout(
    name="lucidrains",
    description="vit_pytorch.ViT",
    config_class=LucidrainsViTConfig,
    evidence=containing(".to_qkv."),
    infer=_infer_vit,
    rules=_vit_rules,
    required=_REQUIRED,
    heads=(("mlp_head", "mlp_head"),),
    defaults=lambda _: {"norm_eps": 1e-5, "activation": "gelu", "pos_embed": "learned", "proj_bias": True},
    fixed=only(
        LucidrainsViTConfig,
        (*_FREE, "class_token", "global_pool", "attn_proj"),
    ),
    conditions=_vit_refusals,
    components=lambda config: _components("transformer:input", "to_out.0", "4", "mlp_head"),
)

SIMPLE_VIT = Layout(
    name="simple_vit",
    description="vit_pytorch.SimpleViT",
    config_class=LucidrainsViTConfig,
    evidence=containing(".to_qkv.", "linear_head."),
    infer=_infer_simple,
    rules=_simple_rules,
    required=_REQUIRED,
    heads=(("linear_head", "linear_head"),),
    defaults=lambda _: {
        "norm_eps": 1e-5,
        "activation": "gelu",
        "pos_embed": "simple_sincos_2d",
        "proj_bias": False,
        "class_token": False,
        "global_pool": "avg",
    },
    fixed=only(
        LucidrainsViTConfig,
        _FREE,
        pos_embed=("simple_sincos_2d",),
        proj_bias=(False,),
        class_token=(False,),
        global_pool=("avg",),
    ),
    conditions=_simple_refusals,
    components=lambda config: _components("transformer:input", "to_out", "3", "linear_head"),
)
