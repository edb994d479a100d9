"""The layout of detectron2's ViTDet: timm's names, a position table with a row for a class token that is left out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert.layout import Shapes, any_match, vote
from vit_flax.convert.rules import ConversionError, Rule
from vit_flax.convert.timm import named
from vit_flax.convert.timm_sam import REL_POS, TIMM_SAM, infer_windows, with_norm

_BLOCK = "blocks.{i}.attn"
_TABLE = ("pos_embed_grid", "pos_embed_class_row")  # fields
_LEFT = ("neck.", "head.", "pos_embed")


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    rules = (rule for rule in TIMM_SAM.rules(config) if isinstance(rule, Rule))
    return (Rule("pos_embed", "pos_embed"), *(rule for rule in rules if not rule.sources[0].startswith(_LEFT)))


def _image_grid(shapes: Shapes) -> tuple[int, int] | None:
    """Returns the grid of the blocks that see all of it: along both sides larger than the windows of the others."""
    tables = [name for name in shapes if name.endswith(f".{REL_POS[0]}")]
    pairs = [(shapes[name], shapes.get(name.replace(*REL_POS), ())) for name in tables]
    grids = sorted({tuple((table[0] + 1) // 2 for table in pair) for pair in pairs if all(len(t) == 2 for t in pair)})
    if len(grids) != 2 or not all(small < large for small, large in zip(*grids, strict=True)):
        return None
    return grids[1][0], grids[1][1]


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    if any_match(shapes, "blocks.{i}.residual.{rest}"):
        raise ConversionError("layout 'detectron2': convolutions after blocks (residual) are not read")
    rows, grid = vote(shapes, ("pos_embed", 1)), _image_grid(shapes)
    values = TIMM_SAM.infer(shapes, known)
    if grid and "patch_size" in values:
        patch: Any = values["patch_size"]
        values["image_size"] = (grid[0] * patch[0], grid[1] * patch[1])
    if rows:  # of the size that was pre-trained on, a square
        with_class = math.isqrt(rows - 1) ** 2 == rows - 1
        side = math.isqrt(rows - with_class)
        values |= {"pos_embed_class_row": with_class, "pos_embed_grid": (side, side)}
    depth: Any = values["depth"]
    return {**values, **infer_windows(shapes, _BLOCK, depth, grid), "num_classes": 0}


def _evidence(names: Collection[str]) -> str | None:
    tables = "blocks.0.attn.rel_pos_h" in names and not any(name.startswith("neck.") for name in names)
    return named("pos_embed", "patch_embed.proj", "blocks.0.mlp.fc1")(names) if tables else None


def _conditions(config: ViTConfig) -> list[str]:
    grid = config.pos_embed_grid
    wrong = config.pos_embed == "learned" and (grid is None or grid[0] != grid[1])
    return [f"pos_embed_grid={grid} (its table is of a square)"] * wrong


DETECTRON2 = dataclasses.replace(
    TIMM_SAM,
    name="detectron2",
    description="detectron2's ViTDet, the trunk of its detectors",
    evidence=_evidence,
    infer=_infer,
    rules=_rules,
    defaults=lambda values: {"norm_eps": 1e-6, "activation": "gelu", "global_pool": "none"},
    fixed={
        **{name: values for name, values in TIMM_SAM.fixed.items() if name not in _TABLE},
        "num_classes": (0,), "qk_norm": (False,), "init_values": (None,), "activation": ("gelu",),
        "neck_chans": (None,), "global_pool": ("none",),
    },
    conditions=_conditions,
    resample=lambda config: "",
    classifier=with_norm,
    heads=(),
)  # fmt: skip
