"""Hugging Face's DINOv3 ViT, as its files and as transformers 5's memory have the names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_flax.config import RopeViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.layout import Layout, Shapes, any_match, vote
from vit_flax.convert.rules import CONV, ConversionError, Drop, Rule, join, join_dense
from vit_flax.convert.timm_blocks import joined, linear, norm

_FIELDS = {
    **hf.FIELDS, "rope_theta": "rope_theta", "key_bias": "key_bias", "proj_bias": "proj_bias", "mlp_bias": "mlp_bias",
    "layerscale_value": "init_values",
}  # fmt: skip
JOINED = join(1, 1, 1)


def _rules(config: ViTConfig, names: hf.Names) -> tuple[Rule | Drop, ...]:
    source, target = names.block, "blocks_{i}"
    projections = {"q": names.query, "k": names.key, "v": names.value}
    gated = config.mlp_layer == "swiglu"
    registers: Rule | Drop = Rule("embeddings.register_tokens", "reg_token")
    if not config.reg_tokens:
        registers = Drop("embeddings.register_tokens", "there are none", np.zeros((1, 0, config.embed_dim), np.float32))
    return (
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.mask_token", "mask_token"),
        registers,
        Rule("embeddings.patch_embeddings.weight", "patch_embed/proj/kernel", CONV),
        Rule("embeddings.patch_embeddings.bias", "patch_embed/proj/bias"),
        *norm(f"{source}.norm{{n}}", f"{target}/norm{{n}}"),
        Rule(
            tuple(f"{source}.{part}.weight" for part in projections.values()),
            f"{target}/attn/qkv/kernel",
            join_dense(1, 1, 1),
        ),
        *(
            (Rule(tuple(f"{source}.{part}.bias" for part in projections.values()), f"{target}/attn/qkv/bias", JOINED),)
            if config.qkv_bias and config.key_bias
            else (Rule(f"{source}.{part}.bias", f"{target}/attn/{letter}_bias") for letter, part in projections.items())
        ),
        *linear(f"{source}.{names.out}", f"{target}/attn/proj"),
        Rule(f"{source}.layer_scale{{n}}.lambda1", f"{target}/ls{{n}}/gamma"),
        *(
            joined((f"{source}.mlp.gate_proj", f"{source}.{names.fc1}"), f"{target}/mlp/fc1", (1, 1))
            if gated
            else linear(f"{source}.{names.fc1}", f"{target}/mlp/fc1")
        ),
        *linear(f"{source}.{names.fc2}", f"{target}/mlp/fc2"),
        *norm("norm", "norm"),
    )


def _infer(names: hf.Names) -> Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]:
    def infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
        def has(part: str) -> bool:
            return any_match(shapes, f"{names.block}.{part}")

        return {
            **hf.block_infer(shapes, names),
            **hf.patch_infer(shapes, "embeddings.patch_embeddings.weight"),
            "key_bias": has(f"{names.key}.bias"),
            "proj_bias": has(f"{names.out}.bias"),
            "mlp_bias": has(f"{names.fc2}.bias"),
            "mlp_layer": "swiglu" if has("mlp.gate_proj.weight") else "mlp",
            "init_values": 1.0,  # only sets what a new model starts with
            "mask_token": True,
            "reg_tokens": vote(shapes, ("embeddings.register_tokens", 1)) or 0,
            "num_classes": 0,
            "global_pool": "token",
        }

    return infer


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    query, value = attributes["query_bias"], attributes["value_bias"]
    if query != value:
        raise ConversionError(f"config.json: query_bias={query} with value_bias={value}: here both are alike")
    return {
        **hf.read(attributes, _FIELDS),
        **hf.read_sizes(attributes),
        **hf.read_mlp(attributes),
        "qkv_bias": query,
        "mlp_layer": "swiglu" if attributes["use_gated_mlp"] else "mlp",
    }


def _write(config: ViTConfig) -> dict[str, Any]:
    return {
        "architectures": ["DINOv3ViTModel"],
        "model_type": "dinov3_vit",
        **hf.write(config, _FIELDS),
        **hf.write_sizes(config),
        **hf.write_mlp(config),
        "query_bias": config.qkv_bias,
        "value_bias": config.qkv_bias,
        "use_gated_mlp": config.mlp_layer == "swiglu",
        "num_register_tokens": config.reg_tokens,
    }


def _conditions(config: ViTConfig) -> list[str]:
    lines = ["init_values=None (it has LayerScale)"] if config.init_values is None else []
    return hf.conditions(config) + lines


def _components(config: ViTConfig, names: hf.Names) -> tuple[tuple[str, str], ...]:
    pairs = hf.block_components(names, "")
    if config.mlp_layer == "swiglu":
        pairs = tuple(pair for pair in pairs if not pair[1].endswith("mlp/fc1"))
    return (*pairs, (f"{names.block}.layer_scale{{n}}", "blocks_{i}/ls{n}"), ("norm", "norm"))


def _layout(names: hf.Names, suffix: str, where: str) -> Layout:
    spelled = f"{names.block.format(i=0)}.{names.norm1}.weight"
    return Layout(
        name=f"huggingface_dinov3{suffix}",
        description=f"Hugging Face's DINOv3 ViT, {where}",
        config_class=RopeViTConfig,
        evidence=hf.ending(spelled, "embeddings.patch_embeddings.weight", "embeddings.register_tokens"),
        infer=_infer(names),
        rules=lambda config: _rules(config, names),
        required=(("num_heads", "image_size", "norm_eps", "activation", "rope_theta"),),
        defaults=lambda known: {},
        fixed=hf.fixed(
            "reg_tokens", "init_values", "rope_theta", "key_bias", "mlp_bias", "proj_bias",
            config_class=RopeViTConfig, mask_token=(True,), mlp_layer=("mlp", "swiglu"), num_classes=(0,),
            global_pool=("token",),
        ),
        components=lambda config: _components(config, names),
        conditions=_conditions,
        hint=hf.HINT,
        belongs=hf.ending(spelled),
        config_file=_write,
    )  # fmt: skip


DINOV3_LAYOUTS: tuple[Layout, ...] = (
    _layout(hf.DINOV3, "", "as its files have it"),
    _layout(hf.DINOV3_MEMORY, "_memory", "as transformers 5 has it in memory"),
)

DINOV3_FAMILIES: dict[str, Family] = {
    "dinov3_vit": Family(
        layout="huggingface_dinov3",
        defaults={
            **hf.SIZES, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "patch_size": 16,
            "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rope_theta": 100.0, "query_bias": True, "key_bias": False,
            "value_bias": True, "proj_bias": True, "mlp_bias": True, "layerscale_value": 1.0, "use_gated_mlp": False,
        },
        fields=_read,
        only={"apply_layernorm": (True,)},
        # training moves the patches; the rest is told by the tensors or of its use as a backbone
        harmless=(
            *hf.HARMLESS, "num_register_tokens", "reshape_hidden_states", "pos_embed_shift", "pos_embed_jitter",
            "pos_embed_rescale", "return_class_token",
        ),
    )
}  # fmt: skip
