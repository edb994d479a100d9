"""Meta's SAM 3 checkpoints: the trunk of the image encoder, with detector, tracker and text tower or alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import ViTConfig, WindowedRopeViTConfig
from vit_flax.convert.huggingface_sam3 import THETA, TRUNK
from vit_flax.convert.layout import Layout, Shapes, only, vote
from vit_flax.convert.rules import CONV, Drop, Rule
from vit_flax.convert.timm import named, timm_components, timm_infer
from vit_flax.convert.timm_blocks import block_rules, norm
from vit_flax.convert.timm_sam import with_norm

_PREFIX = "detector.backbone.vision_backbone.trunk."
# of whole checkpoints, of the image model alone, of the image encoder alone
_PREFIXES = (_PREFIX, _PREFIX.removeprefix("detector."), "vision_backbone.trunk.", "trunk.")
_ROTATIONS = "blocks.{i}.attn.freqs_cis"  # complex (patches, pairs of channels)
_TOLD = ("depth", "embed_dim", "patch_size", "in_chans", "mlp_ratio", "pos_embed")  # by plain names of timm
_FREE = (
    "image_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps", "window_size",
    "global_attn_indexes", "rope_theta", "pos_embed_grid", "pos_embed_class_row",
)  # fmt: skip
_REST = (
    "detector", "tracker", "backbone", "vision_backbone", "convs", "sam2_convs", "transformer", "geometry_encoder",
    "segmentation_head", "dot_prod_scoring", "inst_interactive_predictor",
)  # fmt: skip


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    return (
        Rule("pos_embed", "pos_embed"),
        Rule("patch_embed.proj.weight", "patch_embed/proj/kernel", CONV),
        *norm("ln_pre", "norm_pre"),
        *block_rules(config),
        Drop(_ROTATIONS, "rotary embeddings, which are computed from the config"),
        *(Drop(f"{name}.{{rest}}", "of detection and tracking; the image encoder is read") for name in _REST),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    told = timm_infer(shapes, {**known, "no_embed_class": False})
    values = {name: told[name] for name in _TOLD if name in told} | {**TRUNK, "num_classes": 0}
    if rows := vote(shapes, ("pos_embed", 1)):  # of the pre-training grid, a square
        with_class = math.isqrt(rows - 1) ** 2 == rows - 1
        side = math.isqrt(rows - with_class)
        values |= {"pos_embed_class_row": with_class, "pos_embed_grid": (side, side)}
    tables = {i: shapes.get(_ROTATIONS.format(i=i), ()) for i in range(values["depth"])}
    if all(len(table) == 2 for table in tables.values()):
        sides = {i: math.isqrt(table[0]) for i, table in tables.items()}
        values["num_heads"] = values["embed_dim"] // (2 * tables[0][1])
        if len({*sides.values()}) == 2:
            grid, window = max(sides.values()), min(sides.values())
            values["window_size"] = window
            values["global_attn_indexes"] = tuple(i for i, side in sides.items() if side == grid)
            values["image_size"] = tuple(grid * side for side in values.get("patch_size", ()))
    return values


def _evidence(names: Collection[str]) -> str | None:
    tells = (named(f"{prefix}ln_pre", f"{prefix}blocks.0.attn.qkv") for prefix in (*_PREFIXES, ""))
    return next((found for tell in tells if (found := tell(names))), None)


def _conditions(config: ViTConfig) -> list[str]:
    grid, size = config.pos_embed_grid, config.image_size
    lines = [f"pos_embed_grid={grid} (its table is of a square)"] * (not grid or grid[0] != grid[1])
    return lines + [f"image_size={size} (it holds squares)"] * (size[0] != size[1])


FACEBOOK_SAM3 = Layout(
    name="facebook_sam3",
    description="Meta's SAM 3: the trunk of its image encoder",
    config_class=WindowedRopeViTConfig,
    evidence=_evidence,
    infer=_infer,
    rules=_rules,
    required=(("num_heads", "image_size", "window_size", "global_attn_indexes"),),
    # its norms have torch's epsilon, where transformers' have 1e-6
    defaults=lambda values: {"norm_eps": 1e-5, "activation": "gelu", "rope_theta": THETA},
    fixed=only(
        WindowedRopeViTConfig, _FREE, qkv_bias=(True,), qk_scale=(None, 0), activation=("gelu",), num_classes=(0,),
        **{name: (value,) for name, value in TRUNK.items()},
    ),
    components=lambda config: tuple(
        (f"{_PREFIX}{theirs.replace('norm_pre', 'ln_pre')}", ours)
        for theirs, ours in timm_components(config)
        if theirs != "blocks.{i}.attn"  # whose input is partitioned into windows there
    ),
    conditions=_conditions,
    prefixes=_PREFIXES,
    prefix=lambda config: _PREFIX,
    classifier=with_norm,
)  # fmt: skip
