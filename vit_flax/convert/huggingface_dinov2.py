"""Hugging Face's DINOv2, with and without registers, as its files and as transformers 5's memory have the names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family, activation
from vit_flax.convert.gated_width import hidden_width, integer_ratio
from vit_flax.convert.layout import Layout, Shapes, any_match, ratio_for, vote
from vit_flax.convert.rules import CONV, ROW, Drop, Rule
from vit_flax.convert.timm_blocks import joined, linear, norm

_FIELDS = {**hf.FIELDS, "qkv_bias": "qkv_bias"}


def _gated(names: hf.Names) -> tuple[Rule, ...]:
    source, target = f"{names.block}.mlp", "blocks_{i}/mlp"
    if names is hf.DINOV2:
        return *linear(f"{source}.weights_in", f"{target}/fc1"), *linear(f"{source}.weights_out", f"{target}/fc2")
    return (
        *joined((f"{source}.gate_proj", f"{source}.up_proj"), f"{target}/fc1", (1, 1)),
        *linear(f"{source}.down_proj", f"{target}/fc2"),
    )


def _rules(config: ViTConfig, names: hf.Names) -> tuple[Rule | Drop, ...]:
    blocks = hf.block_rules(names)
    if config.mlp_layer == "swiglu_packed":
        blocks = (*(rule for rule in blocks if "/mlp/" not in rule.target), *_gated(names))
    return (
        Rule("embeddings.cls_token", "cls_token"),
        hf.mask_rule(config, ROW),
        Rule("embeddings.register_tokens", "reg_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        Rule("embeddings.patch_embeddings.projection.weight", "patch_embed/proj/kernel", CONV),
        Rule("embeddings.patch_embeddings.projection.bias", "patch_embed/proj/bias"),
        *blocks,
        Rule(f"{names.block}.layer_scale{{n}}.lambda1", "blocks_{i}/ls{n}/gamma"),
        *norm("layernorm", "norm"),
        *linear("classifier", "head"),
    )


def _infer(names: hf.Names) -> Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]:
    inside, outside = ("weights_in", "weights_out") if names is hf.DINOV2 else ("gate_proj", "down_proj")

    def infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
        values = hf.block_infer(shapes, names)
        gated = any_match(shapes, f"{names.block}.mlp.{inside}.weight")
        hidden = vote(shapes, (f"{names.block}.mlp.{outside}.weight", 1)) if gated else None
        if hidden is not None:
            values["mlp_ratio"] = ratio_for(hidden, values["embed_dim"])
        registers = vote(shapes, ("embeddings.register_tokens", 1)) or 0
        classes = vote(shapes, ("classifier.weight", 0), ("classifier.bias", 0)) or 0
        return {
            **values,
            **hf.patch_infer(shapes, "embeddings.patch_embeddings.projection.weight"),
            **({"activation": "silu"} if gated else {}),
            "mlp_layer": "swiglu_packed" if gated else "mlp",
            "init_values": 1.0,  # only sets what a new model starts with
            "mask_token": any_match(shapes, "embeddings.mask_token"),
            "reg_tokens": registers,
            "no_embed_reg": registers > 0,
            "num_classes": classes,
            "global_pool": "token_avg" if classes else "token",
        }

    return infer


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    width = attributes["hidden_size"]
    gated = attributes["use_swiglu_ffn"]
    fields = {
        **hf.read(attributes, _FIELDS),
        **hf.read_sizes(attributes),
        "init_values": attributes["layerscale_value"],
    }
    if not gated:
        hidden = hidden_width(width, attributes["mlp_ratio"], gated)
        name = activation(attributes["hidden_act"])
        return {**fields, "mlp_layer": "mlp", "mlp_ratio": ratio_for(hidden, width), "activation": name}
    hidden = hidden_width(width, attributes["mlp_ratio"], gated)
    return {
        **fields,
        "mlp_layer": "swiglu_packed",
        "mlp_ratio": ratio_for(hidden, width),
        "activation": "silu",
    }


def _write(config: ViTConfig) -> dict[str, Any]:
    name = "Dinov2WithRegisters" if config.reg_tokens else "Dinov2"
    registers = (
        {"num_register_tokens": config.reg_tokens} if config.reg_tokens else {"use_mask_token": config.mask_token}
    )
    gated = config.mlp_layer == "swiglu_packed"
    return {
        "architectures": [f"{name}ForImageClassification" if config.num_classes else f"{name}Model"],
        "model_type": _model_type(config),
        **hf.write(config, _FIELDS),
        **hf.write_sizes(config),
        "mlp_ratio": integer_ratio(config),
        "use_swiglu_ffn": gated,
        "layerscale_value": config.init_values,
        **({} if gated else {"hidden_act": hf.write_mlp(config)["hidden_act"]}),
        **hf.write_labels(config),
        **registers,
    }


def _model_type(config: ViTConfig) -> str:
    return "dinov2_with_registers" if config.reg_tokens else "dinov2"


def _prefix(config: ViTConfig) -> str:
    return f"{_model_type(config)}." if config.num_classes else ""


def _conditions(config: ViTConfig) -> list[str]:
    lines = hf.conditions(config) + hf.square(config)
    if config.init_values is None:
        lines.append("init_values=None (it has LayerScale)")
    if config.reg_tokens and not config.no_embed_reg:
        lines.append("no_embed_reg=False with reg_tokens (its registers have no positions)")
    if config.reg_tokens and not config.mask_token:
        lines.append("mask_token=False with reg_tokens (it has both)")
    if (config.global_pool == "token_avg") != bool(config.num_classes):
        lines.append(
            f"global_pool={config.global_pool!r} with num_classes={config.num_classes} (its classifier reads "
            "the class token and the patches' mean)"
        )
    if config.mlp_layer == "swiglu_packed" and config.activation != "silu":
        lines.append(f"activation={config.activation!r} with mlp_layer='swiglu_packed' (it holds 'silu')")
    if integer_ratio(config) is None:
        lines.append(f"mlp_ratio={config.mlp_ratio} (it holds an integer, of a gated MLP's product 2/3 of it)")
    return lines


def _components(config: ViTConfig, names: hf.Names) -> tuple[tuple[str, str], ...]:
    prefix = _prefix(config)
    pairs = hf.block_components(names, prefix)
    if config.mlp_layer == "swiglu_packed":
        pairs = tuple(pair for pair in pairs if "/mlp/" not in pair[1])
        out = "weights_out" if names is hf.DINOV2 else "down_proj"
        block = f"{prefix}{names.block}"
        pairs += (
            (f"{block}.mlp.{out}:input", "blocks_{i}/mlp/fc2:input"),
            (f"{block}.mlp.{out}", "blocks_{i}/mlp/fc2"),
        )
    return (
        (f"{prefix}embeddings.patch_embeddings", "patch_embed"),
        *pairs,
        (f"{prefix}{names.block}.layer_scale{{n}}", "blocks_{i}/ls{n}"),
        (f"{prefix}layernorm", "norm"),
        *((("classifier:input", "head:input"), ("classifier", "head")) if config.num_classes else ()),
    )


def _layout(names: hf.Names, suffix: str, where: str) -> Layout:
    block = f"{names.block.format(i=0)}."
    spelled = f"{block}{names.query}.weight"
    return Layout(
        name=f"huggingface_dinov2{suffix}",
        description=f"Hugging Face's DINOv2, {where}",
        config_class=PlainViTConfig,
        evidence=hf.ending(spelled, f"{block}layer_scale1.lambda1", "embeddings.position_embeddings"),
        infer=_infer(names),
        rules=lambda config: _rules(config, names),
        required=hf.REQUIRED,
        defaults=lambda known: {},
        fixed=hf.fixed(
            "reg_tokens", "mask_token", "init_values", "no_embed_reg",
            mlp_layer=("mlp", "swiglu_packed"), global_pool=("token", "token_avg"),
        ),
        components=lambda config: _components(config, names),
        conditions=_conditions,
        hint=hf.HINT,
        resample=lambda config: "bicubic_antialias" if config.reg_tokens else "bicubic",
        prefixes=("dinov2.", "dinov2_with_registers."),
        prefix=_prefix,
        outside=("classifier.",),
        heads=hf.CLASSIFIER,
        belongs=hf.ending(spelled),
        config_file=_write,
    )  # fmt: skip


DINOV2_LAYOUTS: tuple[Layout, ...] = (
    _layout(hf.DINOV2, "", "as its files have it"),
    _layout(hf.DINOV2_MEMORY, "_memory", "as transformers 5 has it in memory"),
)

_FAMILY = Family(
    layout="huggingface_dinov2",
    defaults={
        **hf.SIZES, "patch_size": 14, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
        "layerscale_value": 1.0, "use_swiglu_ffn": False,
    },
    fields=_read,
    only={"apply_layernorm": (True,)},
    # the tensors tell the tokens; the rest is of its use as a backbone
    harmless=(*hf.HARMLESS, "num_register_tokens", "use_mask_token", "reshape_hidden_states"),
)  # fmt: skip
DINOV2_FAMILIES: dict[str, Family] = {"dinov2": _FAMILY, "dinov2_with_registers": _FAMILY}
