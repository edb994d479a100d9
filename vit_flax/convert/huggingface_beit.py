"""Hugging Face's BEiT, as its files and as transformers 5's memory have the names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from vit_flax.config import BeitConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.layout import Layout, Shapes, any_match, vote
from vit_flax.convert.rules import CONV, Drop, Rule
from vit_flax.convert.timm_blocks import linear, norm

_TABLE = "relative_position_bias.relative_position_bias_table"
_INDEX = "relative_position_bias.relative_position_index"
_FOLLOWS = "which row of a table belongs to two places follows from the grid"
# of a block's table and of the one for all blocks, before these names
_FILES = ("encoder.layer.{i}.attention.attention.", "encoder.")
_MEMORY = ("layers.{i}.", "shared_position_bias.")


def _tables(names: hf.Names) -> tuple[str, str]:
    if names is hf.VIT:
        return f"{_FILES[0]}{_TABLE}", f"{_FILES[1]}{_TABLE}"
    return f"{_MEMORY[0]}{_TABLE}", f"{_MEMORY[1]}relative_position_bias_table"


def _rules(config: ViTConfig, names: hf.Names) -> tuple[Rule | Drop, ...]:
    source, target = names.block, "blocks_{i}"
    own, shared = _tables(names)
    return (
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.mask_token", "mask_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        Rule("embeddings.patch_embeddings.projection.weight", "patch_embed/proj/kernel", CONV),
        Rule("embeddings.patch_embeddings.projection.bias", "patch_embed/proj/bias"),
        *(rule for rule in hf.block_rules(names) if not rule.target.endswith("attn/qkv/bias")),
        Rule(f"{source}.{names.query}.bias", f"{target}/attn/q_bias"),
        Rule(f"{source}.{names.value}.bias", f"{target}/attn/v_bias"),
        Rule(f"{source}.lambda_{{n}}", f"{target}/ls{{n}}/gamma"),
        Rule(own, f"{target}/attn/rel_pos_bias/relative_position_bias_table"),
        Rule(shared, "rel_pos_bias/relative_position_bias_table"),
        *(Drop(f"{prefix}{_INDEX}", _FOLLOWS) for prefix in _FILES),
        *norm("layernorm", "norm"),
        *norm("pooler.layernorm", "fc_norm"),
        *linear("classifier", "head"),
    )


def _infer(names: hf.Names) -> Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]:
    own, shared = _tables(names)

    def infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
        pooled = any_match(shapes, "pooler.layernorm.weight")
        return {
            **hf.block_infer(shapes, names),
            **hf.patch_infer(shapes, "embeddings.patch_embeddings.projection.weight"),
            "num_classes": vote(shapes, ("classifier.weight", 0), ("classifier.bias", 0)) or 0,
            "init_values": 0.1 if any_match(shapes, f"{names.block}.lambda_{{n}}") else None,  # what it starts with
            "mask_token": any_match(shapes, "embeddings.mask_token"),
            "pos_embed": "learned" if any_match(shapes, "embeddings.position_embeddings") else "none",
            "rel_pos_bias": any_match(shapes, own),
            "shared_rel_pos_bias": any_match(shapes, shared),
            **_pooling(pooled, any_match(shapes, "layernorm.weight")),
        }

    return infer


def _pooling(pooled: bool, normed: bool) -> dict[str, Any]:
    # data2vec's models without a classifier have neither: their tokens are not normalised
    pool = "avg" if pooled else "token" if normed else "none"
    return {"fc_norm": pooled, "final_norm": pooled or normed, "global_pool": pool}


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    scale = attributes["layer_scale_init_value"]
    return {
        **hf.read(attributes),
        **hf.read_sizes(attributes),
        **hf.read_mlp(attributes),
        "init_values": scale if scale > 0 else None,
        "mask_token": attributes["use_mask_token"],
        "pos_embed": "learned" if attributes["use_absolute_position_embeddings"] else "none",
        "rel_pos_bias": attributes["use_relative_position_bias"],
        "shared_rel_pos_bias": attributes["use_shared_relative_position_bias"],
    }  # the tensors tell use_mean_pooling


def _write(config: ViTConfig) -> dict[str, Any]:
    return {
        "architectures": ["BeitForImageClassification" if config.num_classes else "BeitModel"],
        "model_type": "beit",
        **hf.write(config),
        **hf.write_sizes(config),
        **hf.write_mlp(config),
        **hf.write_labels(config),
        "layer_scale_init_value": config.init_values or 0.0,
        "use_mask_token": config.mask_token,
        "use_absolute_position_embeddings": config.pos_embed == "learned",
        "use_relative_position_bias": config.rel_pos_bias,
        "use_shared_relative_position_bias": config.shared_rel_pos_bias,
        "use_mean_pooling": config.fc_norm,
    }


def classifier_fields(config: ViTConfig) -> dict[str, object]:
    """Returns what a classifier has where the model's tokens are not normalised: the mean, and a norm of its own."""
    return {} if config.final_norm else {"fc_norm": True, "final_norm": True, "global_pool": "avg"}


def _conditions(config: ViTConfig) -> list[str]:
    lines = hf.conditions(config) + hf.square(config)
    if config.fc_norm != (config.global_pool == "avg"):
        lines.append(f"fc_norm={config.fc_norm} with global_pool={config.global_pool!r}")
    return lines


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    prefix = _prefix(config)
    last = ("pooler.layernorm", "fc_norm") if config.fc_norm else ("layernorm", "norm")
    return (
        (f"{prefix}embeddings.patch_embeddings", "patch_embed"),
        *hf.block_components(hf.VIT_MEMORY, prefix),
        (f"{prefix}{last[0]}", last[1]),
        *([("classifier:input", "head:input"), ("classifier", "head")] if config.num_classes else []),
    )


def _prefix(config: ViTConfig) -> str:
    return "beit." if config.num_classes else ""


def _evidence(names: hf.Names) -> Callable[[Collection[str]], str | None]:
    own, shared = (table.format(i=0) for table in _tables(names))
    block = names.block.format(i=0)
    ways = [hf.ending(f"{block}.{names.norm1}.weight", trace) for trace in (f"{block}.lambda_1", own, shared)]
    return lambda present: next((found for way in ways if (found := way(present))), None)


def _layout(names: hf.Names, suffix: str, where: str) -> Layout:
    return Layout(
        name=f"huggingface_beit{suffix}",
        description=f"Hugging Face's BEiT, {where}",
        config_class=BeitConfig,
        evidence=_evidence(names),
        infer=_infer(names),
        rules=lambda config: _rules(config, names),
        required=hf.REQUIRED,
        defaults=lambda known: {},
        fixed=hf.fixed(
            "init_values", "mask_token", "rel_pos_bias", "shared_rel_pos_bias", "fc_norm",
            config_class=BeitConfig, qkv_bias=(True,), pos_embed=("learned", "none"), global_pool=("token", "avg"),
        ),
        components=_components,
        conditions=_conditions,
        hint=hf.HINT,
        resample=lambda config: "bicubic",
        resample_rel_pos_bias="bilinear",
        prefixes=("beit.",),
        prefix=_prefix,
        outside=("classifier.",),
        heads=hf.CLASSIFIER,
        belongs=hf.ending(f"{names.block.format(i=0)}.{names.norm1}.weight"),
        classifier=classifier_fields,
        config_file=_write,
    )  # fmt: skip


BEIT_LAYOUTS: tuple[Layout, ...] = (
    _layout(hf.VIT, "", "as its files have it"),
    _layout(hf.VIT_MEMORY, "_memory", "as transformers 5 has it in memory"),
)

BEIT_FAMILIES: dict[str, Family] = {
    "beit": Family(
        layout="huggingface_beit",
        defaults={
            **hf.SIZES, "patch_size": 16, "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "use_mask_token": False, "use_absolute_position_embeddings": False, "use_relative_position_bias": False,
            "use_shared_relative_position_bias": False, "layer_scale_init_value": 0.1,
        },
        fields=_read,
        # what the tensors tell, the tokens of masked-image training, heads for segmentation, and its use as a backbone
        harmless=(
            *hf.HARMLESS, "use_mean_pooling", "vocab_size", "pool_scales", "use_auxiliary_head",
            "auxiliary_loss_weight", "auxiliary_channels", "auxiliary_num_convs", "auxiliary_concat_input",
            "semantic_loss_ignore_index", "add_fpn", "reshape_hidden_states", "segmentation_indices",
        ),
    )
}  # fmt: skip
