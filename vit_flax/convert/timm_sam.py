"""Layouts of SAM's image encoder: timm's VisionTransformerSAM, and Meta's own beside the rest of Segment Anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import ViTConfig, WindowedViTConfig
from vit_flax.convert.facebook import infer_as, respelled
from vit_flax.convert.layout import Layout, Shapes, any_match, only, vote
from vit_flax.convert.rules import CONV, ConversionError, Drop, Rule, grid_rows
from vit_flax.convert.timm import named, timm_components, timm_infer
from vit_flax.convert.timm_blocks import block_rules, linear, norm

REL_POS = ("rel_pos_h", "rel_pos_w")
_FREE = (
    "image_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps",
    "window_size", "global_attn_indexes", "use_rel_pos", "neck_chans", "num_classes", "init_values",
)  # fmt: skip
# what plain names of timm tell
_TOLD = (
    "depth", "embed_dim", "patch_size", "in_chans", "mlp_ratio", "qkv_bias", "qk_norm", "init_values", "pos_embed",
    "num_classes",
)  # fmt: skip
# what belongs to Segment Anything beside its image encoder
BESIDE = (
    Drop("prompt_encoder.{rest}", "of prompts; the image encoder is read"),
    Drop("mask_decoder.{rest}", "of masks; the image encoder is read"),
)


def with_norm(config: ViTConfig) -> dict[str, object]:
    """Returns the fields of a trunk without neck that change with a classifier: average pooling and a norm after it."""
    return {"global_pool": "avg", "final_norm": True, "fc_norm": True}


def rel_pos_rules(source: str) -> tuple[Rule, ...]:
    """Returns the rules of the relative position embeddings."""
    return tuple(Rule(f"{source}.{name}", f"blocks_{{i}}/attn/{name}") for name in REL_POS)


def infer_windows(shapes: Shapes, source: str, depth: int, grid: tuple[int, ...] | None) -> dict[str, object]:
    """Returns what relative position embeddings tell of windows and heads; `grid` is what the whole image has.

    A block whose tables are of other distances than the grid's attends inside windows. Where all are of the grid, or
    the windows differ, it has to be said.
    """
    names = [[f"{source.format(i=i)}.{name}" for name in REL_POS] for i in range(depth)]
    tables = {i: [shapes[name] for name in pair] for i, pair in enumerate(names) if all(n in shapes for n in pair)}
    found: dict[str, object] = {"use_rel_pos": bool(tables)}
    if grid is None or not tables or any(len(table) != 2 for pair in tables.values() for table in pair):
        return found
    sides = {i: tuple((table[0] + 1) // 2 for table in pair) for i, pair in tables.items()}
    windows = {sides[i] for i in tables if sides[i] != grid}
    if len(windows) == 1 and len({*next(iter(windows))}) == 1:
        found["window_size"] = next(iter(windows))[0]
        found["global_attn_indexes"] = tuple(i for i in tables if sides[i] == grid)
    return found


def head_width(shapes: Shapes, source: str, width: int) -> dict[str, object]:
    """Returns the number of heads, of which relative position embeddings tell the width."""
    own = vote(shapes, *((f"{source}.{name}", 1) for name in REL_POS))
    return {"num_heads": width // own} if own else {}


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    return (
        Rule("pos_embed", "pos_embed", grid_rows(config.grid_size)),
        Rule("patch_embed.proj.weight", "patch_embed/proj/kernel", CONV),
        Rule("patch_embed.proj.bias", "patch_embed/proj/bias"),
        *block_rules(config),
        *rel_pos_rules("blocks.{i}.attn"),
        Rule("neck.0.weight", "neck/conv1/kernel", CONV),
        *norm("neck.1", "neck/norm1"),
        Rule("neck.2.weight", "neck/conv2/kernel", CONV),
        *norm("neck.3", "neck/norm2"),
        *norm("neck", "neck/norm"),
        *linear("head.fc", "head"),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    if any_match(shapes, "norm_pre.{a}", "head.norm.{a}", "head.pre_logits.{rest}"):
        raise ConversionError(
            "layout 'timm_sam': has norm_pre, head.norm or head.pre_logits: a norm before the blocks or in the head, "
            "or a hidden layer of the head, is not read"
        )
    grid, table = None, shapes.get("pos_embed", ())
    respelled = {name.replace("head.fc.", "head."): shape for name, shape in shapes.items()}
    if len(table) == 4:
        grid = tuple(table[1:3])
        respelled["pos_embed"] = (1, table[1] * table[2], table[3])
    told = timm_infer(respelled, {**known, "no_embed_class": False})
    values = {name: told[name] for name in _TOLD if name in told}
    values["neck_chans"] = vote(shapes, ("neck.0.weight", 0), ("neck.{i}.bias", 0))
    values["neck_chans"] = 0 if "neck.weight" in shapes else values["neck_chans"]
    if grid and "patch_size" in values:
        values["image_size"] = tuple(n * p for n, p in zip(grid, values["patch_size"], strict=True))
    values |= infer_windows(shapes, "blocks.{i}.attn", values["depth"], grid)
    return values | head_width(shapes, "blocks.{i}.attn", values["embed_dim"])


def _evidence(names: Collection[str]) -> str | None:
    found = named("patch_embed.proj", "blocks.0.attn.qkv")(names)
    own = next((name for name in ("blocks.0.attn.rel_pos_h", "neck.0.weight") if name in names), None)
    return own if found and own else None


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    # what comes out of attention is parted into windows there, and not here
    pairs = (pair for pair in timm_components(config) if pair[0] not in ("blocks.{i}.attn", "head:input", "head"))
    return (*pairs, *((("head.fc:input", "head:input"), ("head.fc", "head")) if config.num_classes else ()))


_REQUIRED = (("num_heads", "image_size", "window_size", "global_attn_indexes"),)
_FIXED = only(
    WindowedViTConfig, _FREE, qkv_bias=(True, False), qk_scale=(None, 0), pos_embed=("learned", "none"),
    final_norm=(False,),
)  # fmt: skip

TIMM_SAM = Layout(
    name="timm_sam",
    description="timm's VisionTransformerSAM, the image encoder of Segment Anything",
    config_class=WindowedViTConfig,
    evidence=_evidence,
    infer=_infer,
    rules=_rules,
    required=_REQUIRED,
    # of torch.nn.LayerNorm, where Meta's own code has 1e-6
    defaults=lambda values: {"norm_eps": 1e-5, "activation": "gelu", "global_pool": "avg"},
    fixed={
        **_FIXED, "qk_norm": (True, False), "activation": ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu"),
        "global_pool": ("avg", "max", "avgmax", "none"),
    },
    components=_components,
    conditions=lambda config: ["neck_chans=None (it has a norm there: 0)"] * (config.neck_chans is None),
    resample=lambda config: "bicubic_antialias",
    heads=(("head", "head.fc"),),
)  # fmt: skip


def _meta_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    trunk = tuple(rule for rule in _rules(config) if not rule.sources[0].startswith("head."))
    return *respelled(trunk, (".mlp.fc", ".mlp.lin")), *BESIDE


def _meta_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    return {**infer_as(_infer, (r"\.mlp\.lin", ".mlp.fc"))(shapes, known), "num_classes": 0}


def _meta_evidence(names: Collection[str]) -> str | None:
    tells = (named(f"{prefix}patch_embed.proj", f"{prefix}blocks.0.mlp.lin1") for prefix in ("image_encoder.", ""))
    return next((found for tell in tells if (found := tell(names))), None)


SEGMENT_ANYTHING = dataclasses.replace(
    TIMM_SAM,
    name="segment_anything",
    description="Meta's Segment Anything: its image encoder",
    evidence=_meta_evidence,
    infer=_meta_infer,
    rules=_meta_rules,
    defaults=lambda values: {"norm_eps": 1e-6, "activation": "gelu", "global_pool": "none"},
    fixed={**_FIXED, "activation": ("gelu",), "num_classes": (0,), "init_values": (None,), "global_pool": ("none",)},
    components=lambda config: tuple(
        (f"image_encoder.{a.replace('.mlp.fc', '.mlp.lin')}", b) for a, b in _components(config)
    ),
    resample=lambda config: "",
    heads=(),
    prefixes=("image_encoder.",),
    prefix=lambda config: "image_encoder.",
    outside=("prompt_encoder.", "mask_decoder."),
)
