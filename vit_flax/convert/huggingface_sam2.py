"""Hugging Face's SAM 2: the image encoder with its neck, or the trunk, in checkpoints of all of SAM 2 or alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_flax.config import HieraViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import ACTIVATIONS, Family, activation, read_config
from vit_flax.convert.facebook import respell
from vit_flax.convert.layout import Layout, Shapes, only, vote
from vit_flax.convert.rules import ConversionError, Rule
from vit_flax.convert.timm_blocks import linear, norm
from vit_flax.convert.timm_sam2 import (
    PYRAMID,
    REQUIRED,
    STAGED,
    block_pairs,
    infer_stages,
    pyramid_rules,
    staged_defaults,
    stem_rules,
)

_BLOCK = "blocks.{i}"
_TRUNK = "backbone."  # where a neck stands beside it
# timm's parts of names, and transformers'
_SPELLINGS = (
    (".norm1", ".layer_norm1"), (".norm2", ".layer_norm2"), ("mlp.fc1", "mlp.proj_in"), ("mlp.fc2", "mlp.proj_out"),
    ("patch_embed.proj.", "patch_embed.projection."),
)  # fmt: skip
_TIMMS = tuple((theirs, timms) for timms, theirs in _SPELLINGS)


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    return (
        *stem_rules(config, "patch_embed.projection"),
        *norm(f"{_BLOCK}.layer_norm{{n}}", "blocks_{i}/norm{n}"),
        *linear(f"{_BLOCK}.attn.{{layer}}", "blocks_{i}/attn/{layer}"),
        *linear(f"{_BLOCK}.mlp.proj_in", "blocks_{i}/mlp/fc1"),
        *linear(f"{_BLOCK}.mlp.proj_out", "blocks_{i}/mlp/fc2"),
        *linear(f"{_BLOCK}.proj", "blocks_{i}/proj"),
        *pyramid_rules(config, "neck.convs.{i}"),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    today = {respell(name, *_TIMMS): shape for name, shape in shapes.items()}
    neck = vote(shapes, ("neck.convs.{i}.weight", 0), ("neck.convs.{i}.bias", 0))
    return {**infer_stages(today), "neck_chans": neck, "num_classes": 0}


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    has_neck = config.neck_chans is not None
    return tuple((_TRUNK * has_neck + respell(name, *_SPELLINGS), ours) for name, ours in block_pairs(config))


# fields whose values are lists, and those whose values are a number or a pair
_LISTS = {
    "stages": "blocks_per_stage", "stage_dims": "embed_dim_per_stage", "stage_heads": "num_attention_heads_per_stage",
    "window_sizes": "window_size_per_stage", "global_attn_indexes": "global_attention_blocks",
}  # fmt: skip
_PAIRS = {
    "image_size": "image_size", "patch_kernel": "patch_kernel_size", "patch_stride": "patch_stride",
    "patch_padding": "patch_padding", "query_stride": "query_stride",
    "pos_embed_grid": "window_positional_embedding_background_size",
}  # fmt: skip
_TRUNK_DEFAULTS: dict[str, Any] = {
    "hidden_size": 96, "num_channels": 3, "image_size": [1024, 1024], "patch_kernel_size": [7, 7],
    "patch_stride": [4, 4], "patch_padding": [3, 3], "query_stride": [2, 2],
    "window_positional_embedding_background_size": [7, 7], "num_query_pool_stages": 3,
    "blocks_per_stage": [1, 2, 7, 2], "embed_dim_per_stage": [96, 192, 384, 768],
    "num_attention_heads_per_stage": [1, 2, 4, 8], "window_size_per_stage": [8, 4, 14, 7],
    "global_attention_blocks": [5, 7, 9], "mlp_ratio": 4.0, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
}  # fmt: skip
_TOP_DOWN = [2, 3]


def _read_trunk(attributes: Mapping[str, Any]) -> dict[str, Any]:
    # null stands for the default
    given = {name: _TRUNK_DEFAULTS[name] if value is None else value for name, value in attributes.items()}
    pairs = {field: given[name] for field, name in _PAIRS.items()}
    fields: dict[str, Any] = {field: tuple(given[name]) for field, name in _LISTS.items()}
    return {
        **fields,
        **{field: (value, value) if isinstance(value, int) else tuple(value) for field, value in pairs.items()},
        "in_chans": given["num_channels"],
        "embed_dim": given["hidden_size"],
        "depth": sum(fields["stages"]),
        "num_heads": fields["stage_heads"][0],
        "query_pools": given["num_query_pool_stages"],
        "mlp_ratio": given["mlp_ratio"],
        "activation": activation(given["hidden_act"]),
        "norm_eps": given["layer_norm_eps"],
    }


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    trunk = {"model_type": _TRUNK_TYPE, **(attributes["backbone_config"] or {})}
    if trunk["model_type"] != _TRUNK_TYPE:
        raise ConversionError(f"backbone_config of model_type {str(trunk['model_type'])[:60]!r}: only a Hiera is read")
    told = read_config(trunk, {_TRUNK_TYPE: _TRUNK_FAMILY}, "backbone_config")
    assert told is not None
    levels = attributes["fpn_top_down_levels"]
    return {
        **told.fields,
        "neck_chans": attributes["fpn_hidden_size"],
        "pyramid_top_down": tuple(_TOP_DOWN if levels is None else levels),
        "pyramid_levels": attributes["num_feature_levels"],
    }


def _write_trunk(config: ViTConfig) -> dict[str, Any]:
    fields = {name: list(getattr(config, field)) for field, name in (*_LISTS.items(), *_PAIRS.items())}
    return {
        "model_type": _TRUNK_TYPE,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_channels": config.in_chans,
        **fields,
        "num_query_pool_stages": config.query_pools,
        "mlp_ratio": config.mlp_ratio,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "layer_norm_eps": config.norm_eps,
    }


def _write(config: ViTConfig) -> dict[str, Any]:
    trunk = _write_trunk(config)
    if config.neck_chans is None:
        return {"architectures": ["Sam2HieraDetModel"], **trunk}
    ends = config.position.stage_ends[: config.pyramid_levels]  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "architectures": ["Sam2VisionModel"],
        "model_type": "sam2_vision_model",
        "backbone_config": trunk,
        "backbone_channel_list": list(reversed(config.stage_dims)),
        "backbone_feature_sizes": [list(config.grid_before(end + 1)) for end in ends],
        "fpn_hidden_size": config.neck_chans,
        "fpn_top_down_levels": list(config.pyramid_top_down),
        "num_feature_levels": config.pyramid_levels,
    }


SAM2_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="huggingface_sam2",
        description="Hugging Face's SAM 2: the image encoder",
        config_class=HieraViTConfig,
        evidence=hf.ending("pos_embed_window", "blocks.0.mlp.proj_in.weight"),
        infer=_infer,
        rules=_rules,
        required=REQUIRED,
        defaults=lambda known: {**staged_defaults(known), "global_pool": "none"},
        fixed=only(
            HieraViTConfig, (*STAGED, *PYRAMID), num_classes=(0,), qk_scale=(None, 0), global_pool=("none",),
            activation=tuple(ACTIVATIONS.values()),
        ),
        components=_components,
        conditions=hf.conditions,
        hint=hf.HINT,
        prefixes=(_TRUNK,),
        prefix=lambda config: _TRUNK * (config.neck_chans is not None),
        outside=("neck.",),
        config_file=_write,
    ),
)  # fmt: skip
_TRUNK_TYPE = "sam2_hiera_det_model"
_TRUNK_FAMILY = Family(
    layout="huggingface_sam2",
    defaults=_TRUNK_DEFAULTS,
    fields=_read_trunk,
    harmless=(*hf.HARMLESS, "num_attention_heads"),  # stage_heads is read
)
_SAM2 = Family(
    layout="huggingface_sam2",
    defaults={
        "backbone_config": None, "fpn_hidden_size": 256, "fpn_top_down_levels": _TOP_DOWN, "num_feature_levels": 3,
    },
    fields=_read,
    only={"fpn_kernel_size": (1,), "fpn_stride": (1,), "fpn_padding": (0,)},
    # the tensors tell, or nothing of the encoder reads it
    harmless=(*hf.HARMLESS, "backbone_channel_list", "backbone_feature_sizes", "hidden_act", "layer_norm_eps"),
    part="vision_config",
)  # fmt: skip
SAM2_FAMILIES: dict[str, Family] = {
    _TRUNK_TYPE: _TRUNK_FAMILY,
    **dict.fromkeys(("sam2", "sam2_vision_model", "sam2_video"), _SAM2),
}
