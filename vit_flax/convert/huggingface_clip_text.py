"""Hugging Face's two-tower models: CLIP, MetaCLIP 2, SigLIP and SigLIP 2, both towers.

Their names are the same on disk and in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_flax.config import TwoTowersConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import TextFile, activation
from vit_flax.convert.huggingface_clip import BESIDE, CLIP_LAYOUTS
from vit_flax.convert.huggingface_siglip import SIGLIP_LAYOUTS
from vit_flax.convert.layout import Layout, Shapes, any_match, ratio_for, vote
from vit_flax.convert.rules import DENSE, IDENTITY, UNBATCHED, ConversionError, Drop, Rule
from vit_flax.convert.timm_blocks import linear, norm
from vit_flax.convert.two_towers import SCALAR, SUFFIX, TextHalf, moved, with_text

_TEXT = "text_model."
# of the config.json of CLIP; the first that says its own end of texts
_EOS_BEFORE = 2  # what CLIP's files said where the end is the highest number


def _rules(config: TwoTowersConfig) -> tuple[Rule | Drop, ...]:
    tower = (
        Rule("embeddings.token_embedding.weight", "token_embed"),
        Rule("embeddings.position_embedding.weight", "pos_embed", UNBATCHED),
        *hf.block_rules(hf.CLIP),
        *norm("final_layer_norm", "norm"),
    )
    return (*moved(tower, _TEXT, "text/"), Drop(f"{_TEXT}embeddings.position_ids", "counts up"))


def _clip_rules(config: TwoTowersConfig) -> tuple[Rule | Drop, ...]:
    projection = Rule("text_projection.weight", "text/head/kernel", DENSE)
    return (*_rules(config), projection, Rule("logit_scale", "logit_scale", IDENTITY))


def _siglip_rules(config: TwoTowersConfig) -> tuple[Rule | Drop, ...]:
    scalars = tuple(Rule(name, name, SCALAR) for name in ("logit_scale", "logit_bias"))
    return (*_rules(config), *linear(f"{_TEXT}head", "text/head"), *scalars)


def _infer(shapes: Shapes) -> dict[str, Any]:
    tower = {name.removeprefix(_TEXT): shape for name, shape in shapes.items() if name.startswith(_TEXT)}
    values = hf.block_infer(tower, hf.CLIP)
    del values["qkv_bias"]
    for field, name in (("vocab_size", "token"), ("context_length", "position")):
        if size := vote(tower, (f"embeddings.{name}_embedding.weight", 0)):
            values[field] = size
    return values


def _clip_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    width = vote(shapes, ("text_projection.weight", 0)) or 0
    return {**_infer(shapes), "output_dim": width, "proj_bias": False, "causal": True, "logit_bias": False}


def _siglip_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    width = vote(shapes, (f"{_TEXT}head.weight", 0), (f"{_TEXT}head.bias", 0)) or 0
    fixed = {"proj_bias": True, "causal": False, "pool": "last", "logit_bias": any_match(shapes, "logit_bias")}
    return {**_infer(shapes), "output_dim": width, **fixed}


def _evidence(names: Any) -> str | None:
    name = f"{_TEXT}embeddings.token_embedding.weight"
    return name if name in names else None


def _text_write(config: TwoTowersConfig, kind: str) -> dict[str, Any]:
    text = config.text
    return {
        "model_type": f"{kind}_text_model",
        "vocab_size": text.vocab_size,
        "hidden_size": text.embed_dim,
        "intermediate_size": text.mlp_dim,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.num_heads,
        "max_position_embeddings": text.context_length,
        "hidden_act": hf.write_mlp(text.blocks)["hidden_act"],
        "layer_norm_eps": text.norm_eps,
    }


def _write(config: TwoTowersConfig, image: Layout, kind: str, name: str) -> dict[str, Any]:
    assert image.config_file is not None
    told = dict(image.config_file(config.image))
    tower = {key: value for key, value in told.items() if key not in ("architectures", "vision_config")}
    tower["model_type"] = f"{kind}_vision_model"
    return {"architectures": [name], "model_type": kind, "text_config": _text_write(config, kind),
            "vision_config": tower}  # fmt: skip


def _clip_write(config: TwoTowersConfig) -> dict[str, Any]:
    # CLIP takes the number 2 for 'the highest number', MetaCLIP 2 for itself
    text = config.text
    kind, name = ("metaclip_2", "MetaClip2Model") if text.eos_token_id == _EOS_BEFORE else ("clip", "CLIPModel")
    told = _write(config, _IMAGE["clip"], kind, name)
    eos = _EOS_BEFORE if text.pool == "argmax" else text.eos_token_id
    told["text_config"] |= {"eos_token_id": eos, "projection_dim": text.output_dim}
    return {**told, "projection_dim": text.output_dim}


def _siglip_write(config: TwoTowersConfig) -> dict[str, Any]:
    told = _write(config, _IMAGE["siglip"], "siglip", "SiglipModel")
    return told | {"text_config": {**told["text_config"], "projection_size": config.text.output_dim}}


def _siglip2_write(config: TwoTowersConfig) -> dict[str, Any]:
    told = _write(config, _IMAGE["siglip2"], "siglip2", "Siglip2Model")
    return told | {"text_config": {**told["text_config"], "projection_size": config.text.output_dim}}


def _clip_conditions(config: TwoTowersConfig) -> list[str]:
    lines = [] if config.text.output_dim and config.image.num_classes else ["no projection (it has one of each tower)"]
    return lines + ["head_bias=True (its image tower is projected without)"] * config.image.head_bias


def _siglip_conditions(config: TwoTowersConfig) -> list[str]:
    lines = [] if config.text.output_dim else ["text_output_dim=0 (it has a projection)"]
    return lines + ["no pooling by attention (its image tower has it)"] * (config.image.global_pool != "map")


def _components(config: TwoTowersConfig, projection: str) -> tuple[tuple[str, str], ...]:
    pairs = (*hf.block_components(hf.CLIP, _TEXT), (f"{_TEXT}final_layer_norm", "norm"), (projection, "head"))
    return tuple((a, f"text/{b}") for a, b in pairs)


_FIXED: dict[str, tuple[Any, ...]] = {
    "init_values": (None,), "activation": tuple(dict.fromkeys(hf.ACTIVATIONS.values())),
}  # fmt: skip
_CLIP = TextHalf(
    evidence=_evidence,
    infer=_clip_infer,
    rules=_clip_rules,
    required=("num_heads", "activation", "norm_eps", "pool"),
    fixed={
        **_FIXED, "causal": (True,), "pool": ("eos", "argmax"), "proj_bias": (False,), "logit_bias": (False,),
    },
    outside=(_TEXT, "text_projection.", "logit_"),
    conditions=_clip_conditions,
    config_file=_clip_write,
    components=lambda config: _components(config, "text_projection"),
)  # fmt: skip
_SIGLIP = TextHalf(
    evidence=_evidence,
    infer=_siglip_infer,
    rules=_siglip_rules,
    required=("num_heads", "activation", "norm_eps"),
    fixed={**_FIXED, "causal": (False,), "pool": ("last",), "proj_bias": (True,), "logit_bias": (True,)},
    outside=(_TEXT, "logit_"),
    conditions=_siglip_conditions,
    config_file=_siglip_write,
    components=lambda config: _components(config, f"{_TEXT}head"),
)
_HALVES = {"clip": _CLIP, "siglip": _SIGLIP, "siglip2": dataclasses.replace(_SIGLIP, config_file=_siglip2_write)}
_NAMED = {layout.name: layout for layout in (*SIGLIP_LAYOUTS, *CLIP_LAYOUTS)}
_IMAGE = {kind: _NAMED[f"huggingface_{kind}"] for kind in _HALVES}
CLIP_TEXT_LAYOUTS: tuple[Layout, ...] = tuple(
    with_text(_IMAGE[kind], half, BESIDE, f"huggingface_{kind}{SUFFIX}", f"Hugging Face's {kind}, image and text tower")
    for kind, half in _HALVES.items()
)


def _read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": attributes["vocab_size"],
        "context_length": attributes["max_position_embeddings"],
        "embed_dim": attributes["hidden_size"],
        "depth": attributes["num_hidden_layers"],
        "num_heads": attributes["num_attention_heads"],
        "mlp_ratio": ratio_for(attributes["intermediate_size"], attributes["hidden_size"]),
        "activation": activation(attributes["hidden_act"]),
        "norm_eps": attributes["layer_norm_eps"],
    }


def _end(attributes: Mapping[str, Any]) -> int:
    end = attributes["eos_token_id"]
    if not isinstance(end, int):
        raise ConversionError(f"eos_token_id={end!r} (only a number)")
    return end


def _clip_read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    end = _end(attributes)
    pool = {"pool": "argmax"} if end == _EOS_BEFORE else {"pool": "eos", "eos_token_id": end}
    return {**_read(attributes), **pool, "causal": True}


def _metaclip2_read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**_read(attributes), "pool": "eos", "eos_token_id": _end(attributes), "causal": True}


def _siglip_read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**_read(attributes), "pool": "last", "causal": False}


_SIZES = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
          "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
          "eos_token_id": 49407}  # fmt: skip
_SIGLIP_SIZES = {**_SIZES, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                 "vocab_size": 32000, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
                 "layer_norm_eps": 1e-6}  # fmt: skip
_TOLD_BY_TENSORS = ("projection_dim", "projection_size", "dropout")
CLIP_TEXT_FILES: dict[str, TextFile] = {
    "clip": TextFile(_SIZES, _clip_read, _TOLD_BY_TENSORS),
    "metaclip_2": TextFile(_SIZES, _metaclip2_read, _TOLD_BY_TENSORS),
    "siglip": TextFile(_SIGLIP_SIZES, _siglip_read, _TOLD_BY_TENSORS),
    "siglip2": TextFile(_SIGLIP_SIZES, _siglip_read, _TOLD_BY_TENSORS),
}
