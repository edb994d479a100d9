"""Layouts of Meta's own Perception Encoder: with its text tower (Core), and the image tower alone (Spatial, Language).

Names are open_clip's; positions are added, and turned as well. Reference: core.vision_encoder.pe of perception_models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vit_flax.config import RopeViTConfig, ViTConfig
from vit_flax.convert import open_clip
from vit_flax.convert.layout import Layout, Shapes, any_match, only, vote
from vit_flax.convert.rules import CONV, DENSE, UNBATCHED, VECTOR, Drop, Rule
from vit_flax.convert.timm import named
from vit_flax.convert.timm_blocks import linear, norm

_VISUAL = "visual."
_TURNED = {"rope_type": "cat", "rope_theta": 10000.0, "rope_rotate_half": False, "rope_grid_indexing": "xy"}


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    source, target, pool = "transformer.resblocks.{i}", "blocks_{i}", "attn_pool"
    return (
        Rule("conv1.weight", "patch_embed/proj/kernel", CONV),
        Rule("class_embedding", "cls_token", VECTOR),
        Rule("positional_embedding", "pos_embed", UNBATCHED),
        *norm("ln_pre", "norm_pre"),
        *norm(f"{source}.ln_{{n}}", f"{target}/norm{{n}}"),
        Rule(f"{source}.attn.in_proj_weight", f"{target}/attn/qkv/kernel", DENSE),
        Rule(f"{source}.attn.in_proj_bias", f"{target}/attn/qkv/bias"),
        *linear(f"{source}.attn.out_proj", f"{target}/attn/proj"),
        Rule(f"{source}.ls_{{n}}.gamma", f"{target}/ls{{n}}/gamma"),
        *linear(f"{source}.mlp.c_fc", f"{target}/mlp/fc1"),
        *linear(f"{source}.mlp.c_proj", f"{target}/mlp/fc2"),
        *norm("ln_post", "norm"),
        Rule(f"{pool}.probe", f"{pool}/latent"),
        Rule(f"{pool}.attn.in_proj_weight", f"{pool}/qkv/kernel", DENSE),
        Rule(f"{pool}.attn.in_proj_bias", f"{pool}/qkv/bias"),
        *linear(f"{pool}.attn.out_proj", f"{pool}/proj"),
        *norm(f"{pool}.layernorm", f"{pool}/norm"),
        *linear(f"{pool}.mlp.c_fc", f"{pool}/mlp/fc1"),
        *linear(f"{pool}.mlp.c_proj", f"{pool}/mlp/fc2"),
        Rule("proj", "head/kernel"),  # (in, out) as it is: the tower multiplies by it from the right
    )


def _whole_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    rules = (dataclasses.replace(rule, source=f"{_VISUAL}{rule.source}") for rule in _rules(config))
    return (*rules, *open_clip.text_tower())


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    whole = any(name.startswith(_VISUAL) for name in shapes)
    shapes = {
        name if whole else f"{_VISUAL}{name}": s for name, s in shapes.items() if name.startswith(_VISUAL) or not whole
    }
    values: dict[str, Any] = open_clip.OPEN_CLIP.infer(shapes, {"global_pool": "token"})
    del values["fc_norm"]
    prefix = int(any_match(shapes, "visual.class_embedding"))
    pooled = any_match(shapes, "visual.attn_pool.probe")
    values |= {
        "class_token": prefix > 0,
        "patch_bias": False,
        "head_bias": False,
        "final_norm": any_match(shapes, "visual.ln_post.weight"),
        "key_bias": True,
        "pos_embed": "learned" if any_match(shapes, "visual.positional_embedding") else "none",
        "rope_grid_offset": float(prefix),  # the class token is at (0, 0)
        "attn_pool_mlp_ratio": None,
        **({"global_pool": "map", "pool_include_prefix": True} if pooled else {"attn_pool_num_heads": None}),
        **_TURNED,
    }
    values.pop("image_size", None)
    hidden = vote(shapes, ("visual.attn_pool.mlp.c_fc.weight", 0))
    if hidden:
        values["attn_pool_mlp_ratio"] = hidden / values["embed_dim"]
    rows = vote(shapes, ("visual.positional_embedding", 0))
    side = math.isqrt(rows - prefix) if rows else 0
    if rows and side * side == rows - prefix and "patch_size" in values:  # its own loader takes the grid for square
        height, width = values["patch_size"]
        values["image_size"] = (side * height, side * width)
    return values


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"norm_eps": 1e-5, "activation": "gelu", "rope_ref_grid": None}


def _conditions(config: ViTConfig) -> list[str]:
    lines = []
    if config.rope_grid_offset != config.class_token:
        lines.append(f"rope_grid_offset={config.rope_grid_offset} with class_token={config.class_token}")
    if config.rope_ref_grid not in (None, config.grid_size):
        lines.append(f"rope_ref_grid={config.rope_ref_grid} with a grid of {config.grid_size} (it does not stretch)")
    if config.global_pool == "map" and not config.pool_include_prefix:
        lines.append("pool_include_prefix=False with global_pool='map' (it attends to all tokens)")
    if config.head_bias and config.num_classes:
        lines.append("head_bias=True (it multiplies by a matrix)")
    return lines


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    pairs = [("ln_1", "norm1"), ("attn.out_proj", "attn/proj"), ("ln_2", "norm2")]
    pairs += [("mlp.c_fc", "mlp/fc1"), ("mlp.c_proj", "mlp/fc2"), ("mlp", "mlp")]
    block = "transformer.resblocks.{i}"
    return (*((f"{block}.{a}", f"blocks_{{i}}/{b}") for a, b in pairs), (block, "blocks_{i}"))


def _evidence(prefix: str) -> Callable[[Collection[str]], str | None]:
    tower = named(f"{prefix}conv1", f"{prefix}transformer.resblocks.0")

    def evidence(names: Collection[str]) -> str | None:
        if f"{prefix}attn_pool.probe" in names:
            return tower(names) and f"{prefix}attn_pool.probe"
        # CLIP's towers have all of these
        lacking = next((p for p in ("class_embedding", "ln_post.weight") if f"{prefix}{p}" not in names), None)
        found = tower(names)
        return f"{found} without {prefix}{lacking}" if found and lacking else None

    return evidence


PERCEPTION_ENCODER = Layout(
    name="perception_encoder",
    description="Meta's Perception Encoder beside its text tower",
    config_class=RopeViTConfig,
    evidence=_evidence(_VISUAL),
    infer=_infer,
    rules=_whole_rules,
    required=(
        ("num_heads", "global_pool"), ("attn_pool_num_heads",), ("image_size", "patch_size", "in_chans"),
    ),
    defaults=_defaults,
    fixed=only(
        RopeViTConfig,
        (
            "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio",
            "init_values", "norm_eps", "class_token", "pre_norm", "final_norm", "pool_include_prefix", "head_bias",
            "attn_pool_num_heads", "attn_pool_mlp_ratio", "rope_grid_offset", "rope_ref_grid",
        ),
        qk_scale=(None, 0), patch_bias=(False,), key_bias=(True,), pos_embed=("learned",),
        activation=("gelu",), global_pool=("map", "token", "avg", "none"),
        **{name: (value,) for name, value in _TURNED.items()},
    ),
    components=lambda config: tuple((f"{_VISUAL}{a}", b) for a, b in _components(config)),
    conditions=_conditions,
    # Meta's own counts on from the first patch, timm stretches the numbers and resizes tables otherwise
    resample=lambda config: "bilinear" if config.rope_ref_grid is None else "bicubic_antialias",
    hint="; the preset of the model's name in timm (vit_pe_...) tells them all",
)  # fmt: skip

PERCEPTION_ENCODER_TOWER = dataclasses.replace(
    PERCEPTION_ENCODER,
    name="perception_encoder_tower",
    description="Meta's Perception Encoder, the image tower by itself",
    evidence=_evidence(""),
    rules=_rules,
    components=_components,
)
