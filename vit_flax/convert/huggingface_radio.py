"""Hugging Face's RADIO, as NVIDIA's files and as transformers 5's memory have the names.

Its class tokens, one a teacher, and its registers are one table, without positions; tokens are not normalised after the
blocks. The position table is for images of `max_img_size`, and resized for every smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family, activation
from vit_flax.convert.gated_width import hidden_width, integer_ratio
from vit_flax.convert.layout import Layout, Shapes, any_match, ratio_for, vote
from vit_flax.convert.rules import UNBATCHED, Drop, Rule, patch_linear
from vit_flax.convert.timm_blocks import joined, linear, norm

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_FILES = {"embeddings.patch_projection": "model.patch_generator.embedder",
          "embeddings.position_embedding": "model.patch_generator.pos_embed",
          "embeddings.cls_register_token": "model.patch_generator.cls_token.token"}  # fmt: skip
_BLOCK, _FILE_BLOCK = hf.DINOV2_MEMORY.block, "model.blocks.{i}"


def _outside(config: ViTConfig, files: bool) -> tuple[Rule | Drop, ...]:
    names = _FILES if files else {name: name for name in _FILES}
    patches, table, tokens = (names[name] for name in _FILES)
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (_MEAN, _STD))
    reason = "how images are prepared: transformers normalises in the model"
    summary = range(config.num_prefix_tokens) if config.pool_tokens is None else config.pool_tokens
    return (
        Rule(f"{patches}.weight", "patch_embed/proj/kernel", patch_linear(config.in_chans, config.patch_size)),
        Rule(table, "pos_embed"),
        Rule(tokens, "reg_token", UNBATCHED),
        Drop("input_conditioner.norm_mean", reason, mean),
        Drop("input_conditioner.norm_std", reason, std),
        Drop("summary_idxs", "the config's pool_tokens", np.asarray(summary, np.int64)),
        Drop("{a}.video_patch_projection.weight", "projects patches of several frames"),
        Drop("model.patch_generator.video_embedder.weight", "projects patches of several frames"),
        Drop("feature_normalizer.{rest}", "of the teachers' heads"),
        Drop("adaptors.{rest}", "of the teachers' heads"),
    )


def _mlp(source: str, gated: bool) -> tuple[Rule, ...]:
    target = "blocks_{i}/mlp"
    if not gated:
        return *linear(f"{source}.fc1", f"{target}/fc1"), *linear(f"{source}.fc2", f"{target}/fc2")
    return (
        *joined((f"{source}.gate_proj", f"{source}.up_proj"), f"{target}/fc1", (1, 1)),
        *linear(f"{source}.down_proj", f"{target}/fc2"),
    )


def _memory_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    blocks = (rule for rule in hf.block_rules(hf.DINOV2_MEMORY) if "/mlp/" not in rule.target)
    return (
        *_outside(config, files=False),
        *blocks,
        *_mlp(f"{_BLOCK}.mlp", config.mlp_layer == "swiglu_packed"),
        Rule(f"{_BLOCK}.layer_scale{{n}}.lambda1", "blocks_{i}/ls{n}/gamma"),
    )


def _file_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    source, target = _FILE_BLOCK, "blocks_{i}"
    return (
        *_outside(config, files=True),
        *norm(f"{source}.norm{{n}}", f"{target}/norm{{n}}"),
        *linear(f"{source}.attn.{{layer}}", f"{target}/attn/{{layer}}"),
        *_mlp(f"{source}.mlp", config.mlp_layer == "swiglu_packed"),
        Rule(f"{source}.layer_scale{{n}}.lambda1", f"{target}/ls{{n}}/gamma"),
    )


def _infer(files: bool) -> Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]:
    names = list(_FILES.values() if files else _FILES)
    block = _FILE_BLOCK if files else _BLOCK

    def infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
        query = "attn.qkv" if files else hf.DINOV2_MEMORY.query
        values = hf.block_infer(shapes, hf.Names(block, "norm1", "norm2", query, "", "", "", "mlp.fc1", "mlp.fc2"))
        gated = any_match(shapes, f"{block}.mlp.gate_proj.weight")
        hidden = vote(shapes, (f"{block}.mlp.down_proj.weight", 1)) if gated else None
        if hidden is not None:
            values |= {"mlp_ratio": ratio_for(hidden, values["embed_dim"]), "activation": "silu"}
        pixels = vote(shapes, (f"{names[0]}.weight", 1))
        chans, patch = known.get("in_chans", 3), known.get("patch_size")
        if pixels and patch is None:
            side = round((pixels / chans) ** 0.5)
            values["patch_size"] = (side, side)
        return {
            **values,
            "mlp_layer": "swiglu_packed" if gated else "mlp",
            "init_values": 1.0 if any_match(shapes, f"{block}.layer_scale{{n}}.lambda1") else None,
            "class_token": False,
            "reg_tokens": vote(shapes, (names[2], 0)) or 0,
            "no_embed_class": True,
            "patch_bias": False,
            "final_norm": False,
            "num_classes": 0,
            "global_pool": "prefix",
        }

    return infer


_FIELDS = {**hf.FIELDS, "qkv_bias": "qkv_bias"}


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    width, gated = attributes["hidden_size"], attributes["use_swiglu_ffn"]
    return {
        **hf.read(attributes, _FIELDS),
        **hf.read_sizes(attributes),
        "mlp_ratio": ratio_for(hidden_width(width, attributes["mlp_ratio"], gated), width),
        "activation": "silu" if gated else activation(attributes["hidden_act"]),
        "pool_tokens": tuple(attributes["summary_idxs"] or (0, 1)),
    }


def _write(config: ViTConfig) -> dict[str, Any]:
    gated = config.mlp_layer == "swiglu_packed"
    chosen = range(config.num_prefix_tokens) if config.pool_tokens is None else config.pool_tokens
    return {
        "architectures": ["RadioModel"],
        "model_type": "radio",
        **hf.write(config, _FIELDS),
        **hf.write_sizes(config),
        "max_img_size": config.image_size[0],
        "mlp_ratio": float(integer_ratio(config) or config.mlp_ratio),
        "use_swiglu_ffn": gated,
        **({} if gated else {"hidden_act": hf.write_mlp(config)["hidden_act"]}),
        "num_cls_tokens": max(chosen) + 1,
        "num_registers": config.reg_tokens - max(chosen) - 1,
        "summary_idxs": list(chosen),
        "norm_mean": list(_MEAN),
        "norm_std": list(_STD),
    }


def _conditions(config: ViTConfig) -> list[str]:
    lines = hf.conditions(config) + hf.square(config)
    if config.mlp_layer == "swiglu_packed" and config.activation != "silu":
        lines.append(f"activation={config.activation!r} with mlp_layer='swiglu_packed' (it holds 'silu')")
    if config.mlp_layer == "swiglu_packed" and integer_ratio(config) is None:
        lines.append(f"mlp_ratio={config.mlp_ratio} (it holds 2/3 of an integer, of a gated MLP's product)")
    if config.in_chans != 3:
        lines.append(f"in_chans={config.in_chans} (it normalises 3)")
    return lines


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    pairs = hf.block_components(hf.DINOV2_MEMORY, "")
    if config.mlp_layer == "swiglu_packed":
        pairs = tuple(pair for pair in pairs if "/mlp/" not in pair[1])
    scales = ((f"{_BLOCK}.layer_scale{{n}}", "blocks_{i}/ls{n}"),)
    return (*pairs, *(scales if config.init_values is not None else ()))


def _layout(files: bool, suffix: str, where: str) -> Layout:
    block = "blocks.0.norm1.weight" if files else f"{_BLOCK.format(i=0)}.norm1.weight"
    token = next(reversed((_FILES if not files else {v: k for k, v in _FILES.items()}).keys()))
    return Layout(
        name=f"huggingface_radio{suffix}",
        description=f"Hugging Face's RADIO, {where}",
        config_class=PlainViTConfig,
        evidence=hf.ending(block, token),
        infer=_infer(files),
        rules=_file_rules if files else _memory_rules,
        required=hf.REQUIRED,
        defaults=lambda known: {},
        fixed=hf.fixed(
            "reg_tokens", "init_values", "pool_tokens",
            class_token=(False,), no_embed_class=(True,), patch_bias=(False,), final_norm=(False,), num_classes=(0,),
            mlp_layer=("mlp", "swiglu_packed"), global_pool=("prefix",), crop_to_patches=(False,),
        ),
        components=_components,
        conditions=_conditions,
        hint=hf.HINT,
        resample=lambda config: "bilinear_crop",
        prefixes=("radio_model.",) if files else (),
        prefix=lambda config: "radio_model." if files else "",
        config_file=_write,
    )  # fmt: skip


RADIO_LAYOUTS: tuple[Layout, ...] = (
    _layout(True, "", "as its files have it"),
    _layout(False, "_memory", "as transformers 5 has it in memory"),
)
RADIO_FAMILIES: dict[str, Family] = {
    "radio": Family(
        layout="huggingface_radio",
        defaults={
            **hf.SIZES, "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 16,
            "mlp_ratio": 4.0, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "use_swiglu_ffn": False, "qkv_bias": True,
            "summary_idxs": None,
        },
        fields=_read,
        # images are normalised before the model here
        only={"norm_mean": (list(_MEAN), _MEAN), "norm_std": (list(_STD), _STD)},
        # what the tensors tell, and what is of video
        harmless=(
            *hf.HARMLESS, "max_img_size", "num_cls_tokens", "num_registers", "layerscale_value", "patch_dim",
            "video_patch_dim", "video_temporal_patch_size",
        ),
    )
}  # fmt: skip
