"""The layout of the original EVA-02 repository: timm's names with another spelling of the MLP and the inner norms."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert.eva import EVA
from vit_flax.convert.facebook import respelled
from vit_flax.convert.layout import Shapes
from vit_flax.convert.rules import Drop, Rule
from vit_flax.convert.timm import named

_SPLIT = ("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3")
_PACKED = ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")
_NORMS = ("mlp.norm", "mlp.ffn_ln"), ("attn.norm", "attn.inner_attn_ln")
_BIASES = ("attn.q_proj.bias", "attn.q_bias"), ("attn.v_proj.bias", "attn.v_bias")
_ANGLES = "sines and cosines follow from the grid"
_PRETRAINING = "the head that predicts masked patches in pre-training"


def _names(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    """Returns what is spelled otherwise than by timm: (timm's, the original's)."""
    return (*(_PACKED if config.mlp_layer == "swiglu_packed" else _SPLIT), *_NORMS, *_BIASES)


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    rules = (rule for rule in EVA.rules(config) if isinstance(rule, Rule) and rule.target != "rope_freqs")
    return (
        *respelled(tuple(rules), *_names(config)),
        Rule("mask_token", "mask_token"),
        Drop("rope.freqs_{part}", _ANGLES),
        Drop("blocks.{i}.attn.rope.freqs_{part}", _ANGLES),
        Drop("lm_head.{part}", _PRETRAINING),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    is_split = "blocks.0.attn.q_proj.weight" in shapes
    names = dict((*_PACKED, *_SPLIT, *_NORMS))
    names |= dict(_BIASES) if is_split else {}
    respelt = {}
    for name, shape in shapes.items():
        for timm, original in names.items():
            name = re.sub(rf"\.{re.escape(original)}(?=\.|$)", f".{timm}", name)
        respelt[name] = shape
    values: dict[str, Any] = dict(EVA.infer(respelt, known))
    return {**values, "block": "standard", "mask_token": "mask_token" in shapes}


def _evidence(names: Collection[str]) -> str | None:
    kinds = (("attn.q_proj", "mlp.w1"), ("attn.q_bias", "mlp.w1"), ("attn.q_bias", "mlp.w12"))
    tells = (named("patch_embed.proj", *(f"blocks.0.{part}" for part in kind)) for kind in kinds)
    return next((found for tell in tells if (found := tell(names))), None)


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    pairs = EVA.components(config)
    for timm, original in _names(config)[:-2]:
        pairs = tuple((torch.replace(timm, original), linen) for torch, linen in pairs)
    return pairs


EVA02 = dataclasses.replace(
    EVA,
    name="eva02",
    description="EVA-02, the original repository",
    evidence=_evidence,
    infer=_infer,
    rules=_rules,
    fixed={
        **EVA.fixed, "mask_token": (False, True), "mlp_layer": ("swiglu", "swiglu_packed"), "block": ("standard",),
        "rope_type": ("cat", "none"), "key_bias": (False,), "global_pool": ("token", "avg"), "reg_tokens": (0,),
        "no_embed_class": (False,),
    },
    components=_components,
    belongs=None,
)  # fmt: skip
