"""Hugging Face's SAM and SAM-HQ: the image encoder, beside prompt encoder and mask decoder or alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_flax.config import ViTConfig, WindowedViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family, activation
from vit_flax.convert.layout import Layout, Shapes, ratio_for, vote
from vit_flax.convert.rules import CONV, Drop, Rule, grid_rows
from vit_flax.convert.timm_blocks import linear, norm
from vit_flax.convert.timm_sam import BESIDE, head_width, infer_windows, rel_pos_rules

_BLOCK = "layers.{i}"
_QKV = "attn.qkv"  # one layer of all three
_NAMES = hf.Names(_BLOCK, "layer_norm1", "layer_norm2", _QKV, _QKV, _QKV, "attn.proj", "mlp.lin1", "mlp.lin2")
_KERNEL = "patch_embed.projection.weight"


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    return (
        Rule("pos_embed", "pos_embed", grid_rows(config.grid_size)),
        Rule(_KERNEL, "patch_embed/proj/kernel", CONV),
        Rule("patch_embed.projection.bias", "patch_embed/proj/bias"),
        *norm(f"{_BLOCK}.layer_norm{{n}}", "blocks_{i}/norm{n}"),
        *linear(f"{_BLOCK}.attn.{{layer}}", "blocks_{i}/attn/{layer}"),
        *rel_pos_rules(f"{_BLOCK}.attn"),
        *linear(f"{_BLOCK}.mlp.lin{{n}}", "blocks_{i}/mlp/fc{n}"),
        Rule("neck.conv{n}.weight", "neck/conv{n}/kernel", CONV),
        *norm("neck.layer_norm{n}", "neck/norm{n}"),
        Drop("shared_image_embedding.{rest}", "of prompts; the image encoder is read"),
        *BESIDE,
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    blocks = hf.block_infer(shapes, _NAMES)
    table = shapes.get("pos_embed", ())
    grid = tuple(table[1:3]) if len(table) == 4 else None
    return {
        **blocks,
        **hf.patch_infer(shapes, _KERNEL),
        "pos_embed": "learned" if table else "none",
        "neck_chans": vote(shapes, ("neck.conv1.weight", 0), ("neck.layer_norm{n}.weight", 0)),
        "num_classes": 0,
        "global_pool": "none",
        **infer_windows(shapes, f"{_BLOCK}.attn", blocks["depth"], grid),
        **head_width(shapes, f"{_BLOCK}.attn", blocks["embed_dim"]),
    }


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    width, hidden = attributes["hidden_size"], attributes["mlp_dim"]
    return {
        **hf.read(attributes),
        **hf.read_sizes(attributes),
        "mlp_ratio": attributes["mlp_ratio"] if hidden is None else ratio_for(hidden, width),
        "activation": activation(attributes["hidden_act"]),
        "window_size": attributes["window_size"],
        "global_attn_indexes": tuple(attributes["global_attn_indexes"]),
        "neck_chans": attributes["output_channels"],
    }


def _write(config: ViTConfig) -> dict[str, Any]:
    return {
        "architectures": ["SamVisionModel"],
        "model_type": "sam_vision_model",
        **hf.write(config),
        **hf.write_sizes(config),
        "mlp_dim": config.mlp_dim,
        "mlp_ratio": config.mlp_ratio,
        "hidden_act": hf.write_mlp(config)["hidden_act"],
        "qkv_bias": config.qkv_bias,
        "output_channels": config.neck_chans,
        "use_abs_pos": config.pos_embed == "learned",
        "use_rel_pos": config.use_rel_pos,
        "window_size": config.window_size,
        "global_attn_indexes": list(config.global_attn_indexes),
    }


def _conditions(config: ViTConfig) -> list[str]:
    lines = hf.conditions(config) + hf.square(config)
    return lines + [f"neck_chans={config.neck_chans} (it has a neck)"] * (not config.neck_chans)


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    block = f"vision_encoder.{_BLOCK}"
    pairs = (
        ("layer_norm1", "norm1"), ("attn.qkv", "attn/qkv"), ("attn.proj", "attn/proj"), ("layer_norm2", "norm2"),
        ("layer_norm2:input", "norm2:input"), ("mlp.lin1", "mlp/fc1"), ("mlp.lin2:input", "mlp/fc2:input"),
        ("mlp.lin2", "mlp/fc2"), ("mlp", "mlp"),
    )  # fmt: skip
    return (
        (f"{block.format(i=0)}:input", "blocks_0:input"),
        *((f"{block}.{a}", f"blocks_{{i}}/{b}") for a, b in pairs),
        (block, "blocks_{i}"),
    )


SAM_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="huggingface_sam",
        description="Hugging Face's SAM and SAM-HQ: the image encoder",
        config_class=WindowedViTConfig,
        evidence=hf.ending(f"{_BLOCK.format(i=0)}.mlp.lin1.weight", "neck.conv1.weight"),
        infer=_infer,
        rules=_rules,
        required=(*hf.REQUIRED, ("window_size", "global_attn_indexes")),
        defaults=lambda known: {},
        fixed=hf.fixed(
            "window_size", "global_attn_indexes", "use_rel_pos", "neck_chans",
            config_class=WindowedViTConfig, num_classes=(0,), pos_embed=("learned", "none"), final_norm=(False,),
            global_pool=("none",),
        ),
        components=_components,
        conditions=_conditions,
        hint=hf.HINT,
        prefixes=("vision_encoder.",),
        prefix=lambda config: "vision_encoder.",
        outside=("prompt_encoder.", "mask_decoder.", "shared_image_embedding."),
        config_file=_write,
    ),
)  # fmt: skip
_SAM = Family(
    layout="huggingface_sam",
    defaults={
        **hf.SIZES, "image_size": 1024, "patch_size": 16, "mlp_dim": None, "mlp_ratio": 4.0, "hidden_act": "gelu",
        "layer_norm_eps": 1e-6, "output_channels": 256, "window_size": 14, "global_attn_indexes": (2, 5, 8, 11),
    },
    fields=_read,
    # the tensors tell, or it is of prompts
    harmless=(*hf.HARMLESS, "qkv_bias", "use_abs_pos", "use_rel_pos", "num_pos_feats", "scale"),
    part="vision_config",
)  # fmt: skip
SAM_FAMILIES: dict[str, Family] = dict.fromkeys(("sam", "sam_vision_model", "sam_hq", "sam_hq_vision_model"), _SAM)
