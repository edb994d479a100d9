"""big_vision's NaFlex models, SigLIP 2's of images of any aspect ratio: its ViT with a linear layer over patches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vit_flax.config import NaFlexViTConfig, ViTConfig
from vit_flax.convert.google import ACTIVATIONS, BIG_VISION, BIG_VISION_SCAN, FREE, PARTS, POSITIONS, infer_shared
from vit_flax.convert.layout import Layout, Shapes, any_match, only, vote
from vit_flax.convert.rules import Operation, Rule

_KERNEL = "embedding/kernel"


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    height, width = config.patch_size
    cut = Operation(
        "(p p C, D) -> (p, p, C, D)",
        lambda a: a.reshape(height, width, -1, a.shape[-1]),
        lambda a: (a.reshape(-1, a.shape[-1]),),
    )
    rows, columns = config.grid_size
    table = Operation(
        "(H, W, D) -> (1, H W, D)",
        lambda a: a.reshape(1, -1, a.shape[-1]),
        lambda a: (a.reshape(rows, columns, a.shape[-1]),),
    )
    own = {_KERNEL: cut, POSITIONS: table}
    rules = (rule for rule in BIG_VISION.rules(config) if isinstance(rule, Rule))
    return tuple(dataclasses.replace(rule, operation=own.get(rule.sources[0], rule.operation)) for rule in rules)


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    values = infer_shared(shapes, "big_vision_naflex", PARTS, padded=True)
    values |= {"global_pool": "map"} if any_match(shapes, "MAPHead_0/probe") else {}
    chans = known.get("in_chans", 3)
    pixels = vote(shapes, (_KERNEL, 0)) or 0
    side = math.isqrt(pixels // chans)
    if "patch_size" not in known and pixels == chans * side * side:
        values |= {"patch_size": (side, side), "in_chans": chans}
    height, width = known.get("patch_size") or values.get("patch_size") or (0, 0)
    table = shapes.get(POSITIONS, ())
    square = len(table) == 3 and table[0] == table[1]
    return values | ({"image_size": (table[0] * height, table[1] * width)} if square and height else {})


def _evidence(plain: Layout) -> Callable[[Collection[str]], str | None]:
    def evidence(names: Collection[str]) -> str | None:
        # the names are those of the plain model: its kernel is of four axes
        flat = isinstance(names, Mapping) and len(names.get(_KERNEL, ())) == 2
        return f"{_KERNEL} of two axes" if flat and plain.evidence(names) else None

    return evidence


def _layout(plain: Layout) -> Layout:
    return dataclasses.replace(
        plain,
        name=plain.name.replace("big_vision", "big_vision_naflex"),
        description="google-research/big_vision's NaFlex .npz files (SigLIP 2)"
        + (", scanned layers" if plain.stack else ""),
        config_class=NaFlexViTConfig,
        evidence=_evidence(plain),
        infer=_infer,
        rules=_rules,
        fixed=only(
            NaFlexViTConfig,
            tuple(name for name in FREE if name != "class_token"),
            activation=ACTIVATIONS,
            global_pool=("avg", "map"),
        ),
        conditions=lambda config: [],
        resample=lambda config: "",
    )


BIG_VISION_NAFLEX, BIG_VISION_NAFLEX_SCAN = _layout(BIG_VISION), _layout(BIG_VISION_SCAN)
