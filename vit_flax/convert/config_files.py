"""The config.json beside weights: our own, Hugging Face's, timm's or open_clip's, as fields of a model's config.

An attribute that changes what a model computes is translated, or refused by name unless it has the value that this
library computes with. Nothing is skipped because it is unknown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from vit_flax.config import model_config_from_dict
from vit_flax.convert.checkpoint import one_line
from vit_flax.convert.foreign_types import why_not
from vit_flax.convert.rules import ConversionError
from vit_flax.convert.timm_config import (
    read_open_clip_config,
    read_open_clip_text,
    read_timm_backbone,
    read_timm_config,
)

# what stands with the fields of a stored config: the layout, and how texts are prepared for a text tower
STORED_BESIDE = ("layout", "texts")


@dataclasses.dataclass(frozen=True)
class Beside:
    """What a config.json says."""

    origin: str  # what messages call it
    layout: str | None  # layout of the tensors beside it
    fields: Mapping[str, object]  # of the model's config; the others are inferred from the tensors
    # those of a text tower beside an image tower, without `text_`, or ConversionError for what is not computed; None:
    # there is none of a known kind
    text: Callable[[], Mapping[str, object]] | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """How the config.json of one Hugging Face model type is read.

    Reference: the configuration class of that `model_type` in transformers.
    """

    layout: str  # the layout of its tensors
    # the attributes that `fields` reads, with the values they have where config.json leaves them out
    defaults: Mapping[str, object]
    fields: Callable[[Mapping[str, object]], Mapping[str, object]]  # attributes -> fields of the model's config
    only: Mapping[str, tuple[object, ...]] = dataclasses.field(default_factory=dict)  # values it is right to ignore
    harmless: Collection[str] = ()  # attributes that never change what the model computes in evaluation
    part: str | None = None  # the attribute that holds the vision tower's config, in two-tower models


@dataclasses.dataclass(frozen=True)
class TextFile:
    """How the text_config in the config.json of one Hugging Face model type is read."""

    defaults: Mapping[str, object]  # as those of Family
    fields: Callable[[Mapping[str, object]], Mapping[str, object]]  # attributes -> fields of the text tower's config
    harmless: Collection[str] = ()  # attributes that never change what the tower computes in evaluation


# Attributes of every transformers config that no forward pass of an image model reads.
_HARMLESS = {
    "_attn_implementation_internal", "_experts_implementation_internal",
    "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "_output_attentions", "architectures",
    "attn_implementation", "auto_map", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_factor",
    "initializer_range", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16",
    # at work in training only
    "attention_dropout", "attention_probs_dropout_prob", "drop_path_rate", "hidden_dropout_prob", "layerdrop",
    # outputs of AutoBackbone
    "out_features", "out_indices", "stage_names",
}  # fmt: skip
_ONLY: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,), "chunk_size_feed_forward": (0,), "cross_attention_hidden_size": (None,),
    "is_decoder": (False,), "is_encoder_decoder": (False,), "pruned_heads": ({}, None),
    "quantization_config": (None,),
}  # fmt: skip

# transformers.activations.ACT2FN -> vit_flax.models.activations; of several the first is written
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh",
    "sigmoid": "sigmoid", "mish": "mish", "hardswish": "hardswish", "leaky_relu": "leakyrelu", "relu6": "relu6",
    "linear": "identity",
}  # fmt: skip


FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def _refused(source: str, error: Exception) -> str:
    reason = one_line(error) if isinstance(error, ValueError) else f"it is broken: {one_line(repr(error))}"
    return f"{source}: its config cannot be followed: {reason}; pass `config=` with a preset's name to go without it"


def read_config(
    values: Mapping[str, object],
    families: Mapping[str, Family],
    source: str,
    texts: Mapping[str, TextFile] = MappingProxyType({}),
) -> Beside | None:
    """Reads a config.json; None for one of no known kind.

    Args:
        values: the JSON object.
        families: by Hugging Face's model_type.
        source: what messages call the checkpoint.
        texts: how the text towers of some of them are told, by model_type.

    Raises:
        ConversionError: it asks for what this library does not compute; every such attribute is named.
    """
    try:
        if "model_config" in values:
            fields = {name: value for name, value in values.items() if name not in STORED_BESIDE}
            config = model_config_from_dict(fields)
            # of both towers where it is a model of both
            return Beside("stored with the weights", _text(values.get("layout")), config.fields(), dict)
        if values.get("model_type") == "timm_backbone":
            return Beside(*read_timm_backbone(values))
        if "architecture" in values:  # with model_type='timm_wrapper', too
            return Beside(*read_timm_config(values))
        if "model_type" in values:
            return _huggingface(values, families, texts, source)
        if "model_cfg" in values:
            return Beside(*read_open_clip_config(values), lambda: read_open_clip_text(values))
    except FAULTS as error:  # values of any type may stand in a config.json
        raise ConversionError(_refused(source, error)) from error
    return None


def activation(name: object) -> str:
    """Returns this library's name of an activation of transformers, or ConversionError."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConversionError(f"activation {name!r} is not known; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _huggingface(
    values: Mapping[str, Any], families: Mapping[str, Family], texts: Mapping[str, TextFile], source: str
) -> Beside:
    kind = str(values["model_type"])
    if kind not in families and (inner := _inner_tower(values, families)):
        return dataclasses.replace(inner, origin=inner.origin.replace(" (", f" ({kind}, ", 1))
    if kind not in families:
        types = (kind, *map(str, _inner_types(values).values()))
        if reason := next((found for name in types if (found := why_not(name))), None):
            raise ConversionError(f"model_type {kind[:60]!r} is not read: {reason}")
        others = [f" with a {name} of model_type {one_line(repr(t))[:60]}" for name, t in _inner_types(values).items()]
        raise ConversionError(
            f"model_type {kind[:60]!r}{''.join(others[:1])} is not known; known: {', '.join(families)}"
        )
    family = families[kind]
    inner = values[family.part] or {} if family.part is not None and family.part in values else values
    attributes = _attributes(inner, family.defaults, {**_ONLY, **family.only}, family.harmless, kind)

    def text() -> Mapping[str, object]:
        file = texts[kind]
        try:
            told = values.get("text_config") or {}
            return file.fields(_attributes(told, file.defaults, _ONLY, file.harmless, f"{kind}, text_config"))
        except FAULTS as error:
            raise ConversionError(_refused(source, error)) from error

    return Beside(f"config.json ({kind})", family.layout, family.fields(attributes), text if kind in texts else None)


def _attributes(
    values: Mapping[str, Any],
    defaults: Mapping[str, object],
    allowed: Mapping[str, tuple[Any, ...]],
    harmless: Collection[str],
    kind: str,
) -> dict[str, object]:
    """Returns the attributes that are read; ConversionError names all that would change what is computed."""
    attributes = dict(defaults)
    refused = []
    for name, value in values.items():
        if name in defaults:
            attributes[name] = value
        elif name in allowed:
            if value not in allowed[name]:
                refused.append(f"{name}={one_line(repr(value))[:60]} (only {' or '.join(map(repr, allowed[name]))})")
        elif name not in _HARMLESS and name not in harmless:
            refused.append(f"{name}={one_line(repr(value))[:60]} (unknown)")
    if refused:
        raise ConversionError(f"model_type {kind!r} with {', '.join(refused)}")
    return attributes


# Attributes under which a larger model keeps the config of the image tower in it.
_TOWERS = ("vision_config", "backbone_config", "detector_config")


def _inner_types(values: Mapping[str, Any]) -> dict[str, object]:
    """Returns the model types of the towers in a larger model's config, by attribute."""
    towers = {name: values.get(name) for name in _TOWERS}
    return {
        name: tower["model_type"]
        for name, tower in towers.items()
        if isinstance(tower, Mapping) and "model_type" in tower
    }


def _inner_tower(values: Mapping[str, Any], families: Mapping[str, Family]) -> Beside | None:
    """Returns what a larger model's config says of its image tower, or None where that is of no known kind."""
    towers = [values[name] for name, kind in _inner_types(values).items() if isinstance(kind, str)]
    known = (_huggingface(tower, families, {}, "") for tower in towers if tower["model_type"] in families)
    return next(known, None) or next((found for tower in towers if (found := _inner_tower(tower, families))), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
