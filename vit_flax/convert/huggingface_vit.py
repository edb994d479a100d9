"""Hugging Face's ViT, DeiT, ViT-MAE and I-JEPA: the same names, other tokens and heads.

Each comes in two layouts: as files have the names (what transformers 4 and 5 read and write), and with `_memory` as
transformers 5 has them in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.layout import Layout, Shapes, any_match, vote
from vit_flax.convert.rules import CONV, Drop, Rule
from vit_flax.convert.timm_blocks import linear, norm

_CLASSIFIERS = ("classifier.", "cls_classifier.", "distillation_classifier.")


def _rules(config: ViTConfig, names: hf.Names) -> tuple[Rule | Drop, ...]:
    if config.head_dist:
        heads = (*linear("cls_classifier", "head"), *linear("distillation_classifier", "head_dist"))
    else:
        heads = linear("classifier", "head")
    pooler: tuple[Rule | Drop, ...] = linear("pooler.dense", "pre_logits")
    if config.num_classes:
        pooler = (Drop("pooler.dense.{part}", "the classifier does not look at the pooler"),)
    return (
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.distillation_token", "dist_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        Rule("embeddings.patch_embeddings.projection.weight", "patch_embed/proj/kernel", CONV),
        Rule("embeddings.patch_embeddings.projection.bias", "patch_embed/proj/bias"),
        hf.mask_rule(config),
        Drop("decoder.{i}.{part}", "rebuilds masked patches in training"),
        *hf.block_rules(names),
        *norm("layernorm", "norm"),
        *pooler,
        *heads,
    )


def _mae_rules(config: ViTConfig, names: hf.Names) -> tuple[Rule | Drop, ...]:
    reason = "the decoder rebuilds masked patches in pre-training"
    rules = (rule for rule in _rules(config, names) if not isinstance(rule, Drop))
    layers = [f"decoder.{layers}.{{i}}" for layers in ("decoder_layers", "decoder_encoder.layer")]
    parts = ["{a}.{b}", "{a}.{b}.{c}", "{a}.{b}.{c}.{d}"]
    return (
        *rules,
        Drop("decoder.{part}", reason),
        Drop("decoder.{part}.{kind}", reason),
        *(Drop(f"{layer}.{part}", reason) for layer in layers for part in parts),
    )


def _infer(names: hf.Names) -> Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]:
    def infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
        classifiers = ("classifier", "cls_classifier")
        pooler = vote(shapes, ("pooler.dense.weight", 0), ("pooler.dense.bias", 0))
        classes = vote(shapes, *((f"{name}.{part}", 0) for name in classifiers for part in ("weight", "bias"))) or 0
        return {
            **hf.block_infer(shapes, names),
            **hf.patch_infer(shapes, "embeddings.patch_embeddings.projection.weight"),
            "num_classes": classes,
            "representation_size": None if classes else pooler,
            "dist_token": any_match(shapes, "embeddings.distillation_token"),
            "mask_token": any_match(shapes, "embeddings.mask_token"),
            "head_dist": any_match(shapes, "distillation_classifier.weight"),
        }

    return infer


def _components(config: ViTConfig, prefix: str) -> tuple[tuple[str, str], ...]:
    outside = [(f"{prefix}layernorm", "norm")]
    if config.representation_size is not None:
        outside.append((f"{prefix}pooler.dense", "pre_logits"))
    if config.num_classes and config.head_dist:
        outside += [("cls_classifier", "head"), ("distillation_classifier", "head_dist")]
    elif config.num_classes:
        outside += [("classifier:input", "head:input"), ("classifier", "head")]
    return (
        (f"{prefix}embeddings.patch_embeddings", "patch_embed"),
        *hf.block_components(hf.VIT_MEMORY, prefix),
        *outside,
    )


_DEFAULTS = {
    **hf.SIZES, "patch_size": 16, "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}  # fmt: skip


_PRE_TRAINING = (
    "mask_ratio", "norm_pix_loss", "decoder_num_attention_heads", "decoder_hidden_size", "decoder_num_hidden_layers",
    "decoder_intermediate_size",
)  # fmt: skip
_FIELDS = {**hf.FIELDS, "qkv_bias": "qkv_bias"}


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**hf.read(attributes, _FIELDS), **hf.read_sizes(attributes), **hf.read_mlp(attributes)}


def _write(config: ViTConfig, model_type: str, name: str, more: Mapping[str, Any]) -> dict[str, Any]:
    pooler = {} if config.representation_size is None else {"pooler_output_size": config.representation_size}
    kind = "WithTeacher" if config.head_dist else ""
    head = f"ForImageClassification{kind}" if config.num_classes else "Model"
    return {
        "architectures": [f"{name}{head}"],
        "model_type": model_type,
        **hf.write(config, _FIELDS),
        **hf.write_sizes(config),
        **hf.write_mlp(config),
        **hf.write_labels(config),
        **pooler,
        **more,
    }


def _block(names: hf.Names) -> str:
    return f"{names.block.format(i=0)}.{names.norm1}.weight"


def _family(
    model_type: str,
    prefix: str,
    name: str,
    needles: tuple[str, ...],
    fixed: Mapping[str, tuple[Any, ...]],
    values: Mapping[str, Any] | None = None,
    rules: Callable[[ViTConfig, hf.Names], tuple[Rule | Drop, ...]] = _rules,
    attributes: Mapping[str, Any] | None = None,
) -> tuple[Layout, Layout]:
    """Returns the two layouts of a family.

    Args:
        model_type: as in config.json.
        prefix: of the model's names where a classifier stands beside it.
        name: what the names of its classes begin with.
        needles: names that tell it from others with the same blocks.
        fixed: values of fields that it can hold.
        values: fields that belong to the family.
        rules: its table.
        attributes: what config.json holds besides.
    """

    def outer(config: ViTConfig) -> str:
        return prefix if config.num_classes else ""

    def layout(names: hf.Names, suffix: str, where: str) -> Layout:
        infer = _infer(names)
        return Layout(
            name=f"huggingface_{model_type.removeprefix('vit_')}{suffix}",
            description=f"Hugging Face's {name}, {where}",
            config_class=PlainViTConfig,
            evidence=hf.ending(_block(names), *needles),
            infer=lambda shapes, known: {**infer(shapes, known), **(values or {})},
            rules=lambda config: rules(config, names),
            required=hf.REQUIRED,
            defaults=lambda known: {},
            fixed=fixed,
            components=lambda config: _components(config, outer(config)),
            conditions=hf.conditions,
            hint=hf.HINT,
            resample=lambda config: "bicubic",
            prefixes=(prefix,),
            prefix=outer,
            outside=_CLASSIFIERS,
            heads=tuple((name.removesuffix("."), name.removesuffix(".")) for name in _CLASSIFIERS),
            belongs=hf.ending(_block(names)),
            config_file=lambda config: _write(config, model_type, name, attributes or {}),
        )

    return layout(hf.VIT, "", "as its files have it"), layout(
        hf.VIT_MEMORY, "_memory", "as transformers 5 has it in memory"
    )


# From the general to the special, as `vit_flax.convert` has all layouts.
VIT_LAYOUTS: tuple[Layout, ...] = (
    *_family(
        "ijepa",
        "ijepa.",
        "IJepa",
        ("embeddings.position_embeddings",),
        hf.fixed("representation_size", "mask_token", class_token=(False,), global_pool=("avg",)),
        {"class_token": False, "global_pool": "avg"},
    ),
    *_family(
        "vit",
        "vit.",
        "ViT",
        ("embeddings.cls_token",),
        # MAE's fixed table is stored as the learned ones are: its classifiers are of this family
        hf.fixed("representation_size", "mask_token", global_pool=("token",), pos_embed=("learned", "sincos_2d")),
    ),
    *_family(
        "deit",
        "deit.",
        "DeiT",
        ("embeddings.distillation_token",),
        hf.fixed("representation_size", "mask_token", "head_dist", dist_token=(True,), global_pool=("token",)),
    ),
    *_family(
        "vit_mae",
        "vit.",
        "ViTMAE",
        ("decoder.decoder_pred.weight",),
        hf.fixed(num_classes=(0,), pos_embed=("sincos_2d",), global_pool=("token",)),
        {"pos_embed": "sincos_2d"},
        _mae_rules,
        {"mask_ratio": 0.0},  # what the models here compute: no patch is hidden
    ),
)

_POOLER = {"pooler_act": ("tanh",)}
VIT_FAMILIES: dict[str, Family] = {
    "vit": Family("huggingface_vit", _DEFAULTS, _read, _POOLER, (*hf.HARMLESS, "pooler_output_size")),
    "deit": Family("huggingface_deit", _DEFAULTS, _read, _POOLER, (*hf.HARMLESS, "pooler_output_size")),
    "vit_msn": Family("huggingface_vit", {**_DEFAULTS, "layer_norm_eps": 1e-6}, _read, harmless=hf.HARMLESS),
    "ijepa": Family("huggingface_ijepa", _DEFAULTS, _read, _POOLER, (*hf.HARMLESS, "pooler_output_size")),
    # how many patches pre-training hides, and its decoder
    "vit_mae": Family("huggingface_mae", _DEFAULTS, _read, harmless=(*hf.HARMLESS, *_PRE_TRAINING)),
}
