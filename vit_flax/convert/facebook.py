"""Layouts of the original DeiT, DeiT-III, DINO, DINOv2, I-JEPA and MAE repositories: timm's names, or nearly."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert.layout import Layout, Shapes, any_match
from vit_flax.convert.rules import ROW, Drop, Rule
from vit_flax.convert.timm import PLAIN, TIMM, named, timm_components, timm_infer, timm_rules


def respell(name: str, *names: tuple[str, str]) -> str:
    """Returns a name with parts of it replaced; `names` are (part, its replacement)."""
    for old, new in names:
        name = name.replace(old, new)
    return name


def respelled(rules: tuple[Rule, ...], *names: tuple[str, str]) -> tuple[Rule, ...]:
    """Returns the rules with timm's spelling of some names replaced."""
    return tuple(
        dataclasses.replace(rule, source=tuple(respell(template, *names) for template in rule.sources))
        for rule in rules
    )


def infer_as(infer: Callable[..., dict[str, object]], *names: tuple[str, str]) -> Callable[..., dict[str, object]]:
    """Returns a layout's `infer` for tensors of another spelling; `names` are (pattern, that layout's spelling)."""

    def infer_respelled(shapes: Shapes, known: Mapping[str, object]) -> dict[str, object]:
        respelled = dict(shapes)
        for pattern, name in names:
            respelled = {re.sub(pattern, name, key): shape for key, shape in respelled.items()}
        return infer(respelled, known)

    return infer_respelled


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    pool = "avg" if values.get("fc_norm") else "token"
    return {"norm_eps": 1e-6, "activation": "gelu", "global_pool": pool, "qk_scale": None, "value_skip": False}


_FIXED = {**PLAIN, "norm_layer": ("layernorm",), "mlp_layer": ("mlp",), "pre_norm": (False,), "patch_norm": (False,)}
_FIXED |= {"pos_embed": ("learned",), "block": ("standard",)}
_FIXED |= dict.fromkeys(("qk_norm", "scale_attn_norm", "scale_mlp_norm"), (False,))
_REQUIRED = (("num_heads", "image_size"),)

_settled = Layout.__dataclass_fields__["unsettled"].default

DEIT = dataclasses.replace(
    TIMM,
    name="deit",
    description="DeiT, with or without distillation token",
    evidence=named("dist_token", "blocks.0.attn.qkv"),
    required=_REQUIRED,
    defaults=_defaults,
    unsettled=_settled,
    resample=lambda config: "bicubic",
    fixed={**_FIXED, "global_pool": ("token",), "reg_tokens": (0,), "init_values": (None,), "no_embed_class": (False,)},
    hint="",
)

_DEIT3_NAMES = ("ls{n}.gamma", "gamma_{n}")

DEIT3 = dataclasses.replace(
    DEIT,
    name="deit3",
    description="DeiT-III",
    evidence=named("blocks.0.gamma_1", "blocks.0.attn.qkv.bias", "pos_embed"),
    infer=infer_as(timm_infer, (r"gamma_(\d)$", r"ls\1.gamma")),
    rules=lambda config: respelled(timm_rules(config), _DEIT3_NAMES),
    fixed={**_FIXED, "global_pool": ("token",), "reg_tokens": (0,), "dist_token": (False,), "no_embed_class": (True,)},
    unsettled=lambda names: (
        "DeiT-III and timm's models with both positions and rotation (vit_*_rope_ape_*) have the same names; pass "
        "`layout='deit3'`, or `config=` with the preset's name"
    ),
    # gamma_1 and gamma_2 are parameters of the block itself: no module to compare
    components=lambda config: tuple(pair for pair in timm_components(config) if ".ls" not in pair[0]),
)


def _headless(config: ViTConfig) -> tuple[Rule, ...]:
    return tuple(rule for rule in timm_rules(config) if not rule.target.startswith("head"))


_PROJECTION = "the projection head of self-supervised training"

DINO = dataclasses.replace(
    TIMM,
    name="dino",
    description="DINO, backbone alone or as trained",
    evidence=named("head.last_layer", "blocks.0.attn.qkv"),
    rules=lambda config: (
        *_headless(config),
        # iBOT has the same, with second layers for its patches
        *(Drop(f"head.{part}.{{rest}}", _PROJECTION) for part in ("mlp", "mlp2", "last_layer", "last_layer2")),
    ),
    required=_REQUIRED,
    defaults=_defaults,
    unsettled=_settled,
    resample=lambda config: "bicubic_offset",
    fixed={
        **_FIXED, "num_classes": (0,), "reg_tokens": (0,), "init_values": (None,), "dist_token": (False,),
        "no_embed_class": (False,), "global_pool": ("token",),
    },
    hint="",
)  # fmt: skip


_DINOV2_NAMES = ("reg_token", "register_tokens"), ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")


def _dinov2_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    names = _DINOV2_NAMES if config.mlp_layer == "swiglu_packed" else _DINOV2_NAMES[:1]
    return *respelled(timm_rules(config), *names), Rule("mask_token", "mask_token", ROW)


def _dinov2_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    names = (r"^register_tokens$", "reg_token"), (r"mlp\.w12\.", "mlp.fc1."), (r"mlp\.w3\.", "mlp.fc2.")
    values: dict[str, Any] = infer_as(timm_infer, *names)(shapes, known)
    return {**values, "no_embed_reg": values["reg_tokens"] > 0, "mask_token": any_match(shapes, "mask_token")}


def _dinov2_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    gated = values.get("mlp_layer") == "swiglu_packed"
    return {**_defaults(values), "activation": "silu" if gated else "gelu"}


def _dinov2_components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    pairs = timm_components(config)
    for timm, dinov2 in _DINOV2_NAMES[1:] if config.mlp_layer == "swiglu_packed" else ():
        pairs = tuple((torch.replace(timm, dinov2), linen) for torch, linen in pairs)
    return pairs


def _dinov2_conditions(config: ViTConfig) -> list[str]:
    if config.reg_tokens and not config.no_embed_reg:
        return ["no_embed_reg=False with reg_tokens (its registers have no positions)"]
    return []


DINOV2 = dataclasses.replace(
    DINO,
    name="dinov2",
    description="DINOv2, with or without registers",
    evidence=named("mask_token", "blocks.0.attn.qkv", "blocks.0.ls1"),
    infer=_dinov2_infer,
    rules=_dinov2_rules,
    defaults=_dinov2_defaults,
    # the models with registers were published together with another way of resizing
    resample=lambda config: "bicubic_antialias" if config.reg_tokens else "bicubic_offset",
    # its `head` is the identity until someone puts a classifier there, which then reads the class token
    fixed={
        name: values for name, values in DINO.fixed.items() if name not in ("reg_tokens", "init_values", "num_classes")
    }
    | {"mask_token": (True,), "no_embed_reg": (False, True), "mlp_layer": ("mlp", "swiglu_packed")},
    components=_dinov2_components,
    conditions=_dinov2_conditions,
)


IJEPA = dataclasses.replace(
    DINO,
    name="ijepa",
    description="I-JEPA, its encoder or target encoder",
    evidence=lambda names: None,  # without their entry in the file, the names are those of many models
    infer=lambda shapes, known: {**timm_infer(shapes, known), "pos_embed": "sincos_2d", "global_pool": "avg"},
    rules=_headless,
    resample=lambda config: "bicubic",
    fixed={**DINO.fixed, "class_token": (False,), "pos_embed": ("sincos_2d",), "global_pool": ("avg",)},
)


def _mae_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    # pre-training keeps the positions fixed, fine-tuning does not
    pretrained = any_match(shapes, "decoder_pred.weight", "decoder_embed.weight")
    return {**timm_infer(shapes, known), "pos_embed": "sincos_2d" if pretrained else "learned"}


MAE = dataclasses.replace(
    TIMM,
    name="mae",
    description="MAE, the encoder of a pre-trained model or a fine-tuned one",
    evidence=named("decoder_blocks.0", "blocks.0.attn.qkv"),
    infer=_mae_infer,
    rules=lambda config: (
        *timm_rules(config),
        Drop("mask_token", "the decoder's: it rebuilds masked patches in pre-training"),
        Drop("decoder_{part}", "the decoder rebuilds masked patches in pre-training"),
        Drop("decoder_{part}.{name}", "the decoder rebuilds masked patches in pre-training"),
        Drop("decoder_blocks.{i}.{layer}.{name}", "the decoder rebuilds masked patches in pre-training"),
        Drop("decoder_blocks.{i}.{layer}.{part}.{name}", "the decoder rebuilds masked patches in pre-training"),
    ),
    required=_REQUIRED,
    defaults=_defaults,
    unsettled=_settled,
    resample=lambda config: "bicubic",
    fixed={
        **_FIXED, "pos_embed": ("sincos_2d", "learned"), "reg_tokens": (0,), "init_values": (None,),
        "dist_token": (False,), "no_embed_class": (False,), "global_pool": ("token", "avg"),
    },
    hint="",
)  # fmt: skip
