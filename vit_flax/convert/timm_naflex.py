"""timm's NaFlexVit, for images of one size: VisionTransformer, its kernel and its table laid out otherwise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert.layout import Layout, Shapes, vote
from vit_flax.convert.rules import ConversionError, Operation, Rule, grid_rows
from vit_flax.convert.timm import TIMM, named, timm_components, timm_infer, timm_rules

_KERNEL, _TABLE = "embeds.proj.weight", "embeds.pos_embed"
_OWN = {"patch_embed.proj.bias": "embeds.proj.bias", "cls_token": "embeds.cls_token", "reg_token": "embeds.reg_token"}
_OWN |= {f"patch_embed.norm.{part}": f"embeds.norm.{part}" for part in ("weight", "bias")}


def _kernel(config: ViTConfig) -> Operation:
    """Returns the move of a linear layer over (row, column, channel) to the kernel of a convolution."""
    height, width = config.patch_size
    return Operation(
        "(out, p p C) -> (p, p, C, out)",
        lambda a: a.T.reshape(height, width, -1, a.shape[0]),
        lambda a: (a.reshape(-1, a.shape[-1]).T,),
    )


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    found = []
    for rule in timm_rules(config):
        source = rule.sources[0]
        if source == "patch_embed.proj.weight":
            found.append(Rule(_KERNEL, rule.target, _kernel(config)))
        elif source == "pos_embed":
            found.append(Rule(_TABLE, rule.target, grid_rows(config.grid_size)))
        else:
            found.append(dataclasses.replace(rule, source=_OWN[source]) if source in _OWN else rule)
    return tuple(found)


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    apart = "embeds.pos_embed_y" in shapes
    if apart or len(shapes.get(_KERNEL, (0, 0))) != 2:
        why = "positions of rows and columns apart (factorized)" if apart else f"a convolution as {_KERNEL}"
        raise ConversionError(f"layout 'timm_naflex': timm's NaFlexVit with {why} is not read")
    back = {new: old for old, new in _OWN.items()}
    respelled = {back.get(name, name): shape for name, shape in shapes.items()}
    table = shapes.get(_TABLE, ())
    if len(table) == 4:
        respelled["pos_embed"] = (1, table[1] * table[2], table[3])
    values = timm_infer(respelled, {**known, "no_embed_class": True})
    pixels, chans = vote(shapes, (_KERNEL, 1)), known.get("in_chans", 3)
    side = math.isqrt(pixels // chans) if pixels else 0
    if pixels and chans * side * side == pixels:
        values |= {"patch_size": (side, side), "in_chans": chans}
    return {**values, "no_embed_class": True}


def _conditions(config: ViTConfig) -> list[str]:
    lines = TIMM.conditions(config)
    if config.num_embed_prefix_tokens:
        lines.append("no_embed_class=False (its table has rows for patches only)")
    return lines


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in timm_components(config) if pair[0] != "patch_embed")


TIMM_NAFLEX: Layout = dataclasses.replace(
    TIMM,
    name="timm_naflex",
    description="timm's NaFlexVit, for images of one size",
    evidence=named(_KERNEL, "blocks.0.attn.qkv"),
    infer=_infer,
    rules=_rules,
    fixed={**TIMM.fixed, "no_embed_class": (True,), "dist_token": (False,), "pos_embed": ("learned",)},
    conditions=_conditions,
    components=_components,
    unsettled=lambda names: None,
    hint="",
)
