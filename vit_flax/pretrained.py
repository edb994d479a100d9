"""Checkpoints to models and back: the public functions of conversion."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from vit_flax.config import ModelConfig
from vit_flax.convert import (
    ConversionError,
    Wish,
    get_layout,
    layout_to_write,
    open_checkpoint,
    own_layout,
    write_checkpoint,
)
from vit_flax.convert.fitting import after, steps_to
from vit_flax.convert.folder import TOKENIZER_FILES, text_owner, tokenizer_files
from vit_flax.models import TwoTowers, VisionTransformer, build_model
from vit_flax.preparing import beside_weights
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.presets import get_preset
from vit_flax.reading import Params, read_model
from vit_flax.writing import flat_params

Model = VisionTransformer | TwoTowers


def create_model(preset: str, **overrides: object) -> Any:
    """Returns the linen module of a preset; `overrides` are fields of its config or dtype, param_dtype, precision.

    It is a VisionTransformer, and a TwoTowers where the preset's name ends in `_with_text`, whose text tower's fields
    have `text_` before them.

    Raises:
        ValueError: no such preset (the nearest is suggested), no such field, or values that do not fit.
    """
    runtime = {name: overrides.pop(name) for name in ("dtype", "param_dtype", "precision") if name in overrides}
    return build_model(get_preset(preset).config.replace(**overrides), **runtime)


def from_state_dict(
    tensors: Mapping[str, object],
    layout: str | None = None,
    config: str | ModelConfig | Mapping[str, object] | None = None,
    *,
    entry: str | None = None,
    resample: str | None = None,
    source_grid: tuple[int, int] | None = None,
    tower: str | None = None,
    **overrides: object,
) -> tuple[Any, Params]:
    """Returns the Flax model of named arrays (torch's or NumPy's) and its parameters, in the tensors' own dtypes.

    Args:
        tensors: names to arrays, for example `torch_model.state_dict()`.
        layout: a layout's name; None finds it from the names.
        config: the fields that tensors cannot tell: a preset's name, a ViTConfig or its `to_dict()`, or the contents of
            a config.json.
        entry: which weights of a training checkpoint to take where it holds several: levels of its mappings and
            names, for example 'teacher' or 'state_dict/module.base_encoder'.
        resample: how to resize learned position embeddings when `image_size` asks for another grid of patches, and the
            patch kernel when `patch_size` asks for other patches (as FlexiViT does): a mode of
            vit_flax.models.resample. None takes the mode of the layout's own library.
        source_grid: (height, width) of the checkpoint's grid of patches, needed where that is not square.
        tower: for checkpoints of two towers: 'image' for the image tower alone, a VisionTransformer; 'both' for a
            TwoTowers. None: both where the text tower's kind is known and neither `config` nor `num_classes` asks for
            an image model.
        **overrides: single fields of the config, for example `num_heads=12`; they win over `config`. A text tower's
            have `text_` before them.

    Raises:
        ConversionError: the layout is unknown, a field is (the message says which), or tensors are missing,
            unexpected, ambiguous or misshapen (the message lists them all).
        ValueError: a field does not exist, or values do not fit each other.
    """
    wish = Wish(layout=layout, config=config, overrides=overrides, entry=entry, resample=resample,
                source_grid=source_grid, tower=tower)  # fmt: skip
    return _build(tensors, wish)


def load(
    path: str | os.PathLike[str],
    layout: str | None = None,
    config: str | ModelConfig | Mapping[str, object] | None = None,
    *,
    entry: str | None = None,
    resample: str | None = None,
    source_grid: tuple[int, int] | None = None,
    tower: str | None = None,
    **overrides: object,
) -> tuple[Any, Params]:
    """Returns the Flax model of a weights file, a folder or hf://owner/name[@revision][/file], and its parameters.

    Of CLIP, SigLIP and their like it is the model of both towers, `vit_flax.models.TwoTowers`; `tower='image'` gives
    the image tower.

    Files are .safetensors (or the index of several), .npz, .msgpack and torch's (.pth, .pt, .bin, .ckpt, .pth.tar).
    Pickles are read by torch's weights_only alone. A folder may be a Hugging Face repository or its place in the hub's
    cache, one of torch.distributed.checkpoint or of Orbax, a LoRA adapter of peft (merged with its base), or a run of
    `vit-flax train`. What was left out, cast or applied is logged as a warning.

    Arguments and errors are those of `from_state_dict`; a config stored with the weights counts after `config`.
    """
    wish = Wish(layout=layout, config=config, overrides=overrides, entry=entry, resample=resample,
                source_grid=source_grid, tower=tower)  # fmt: skip
    return _build(path, wish)


def _build(source: str | os.PathLike[str] | Mapping[str, Any], wish: Wish) -> tuple[Any, Params]:
    reading = read_model(open_checkpoint(source, wish), wish)
    reading.log_notes()
    return reading.build()


def to_state_dict(model: Model, params: PyTree, layout: str | None = None) -> dict[str, np.ndarray]:
    """Returns the parameters as NumPy arrays under a layout's names, every value bit for bit.

    Args:
        model: the model the parameters belong to.
        params: its parameters.
        layout: a layout's name; None takes the first that can hold the model.

    Raises:
        ConversionError: the layout cannot hold the model, or the parameters are not the model's; all reasons named.
    """
    return layout_to_write(model.config, layout).write(flat_params(model, params), model.config)


def fit_layout(model: VisionTransformer, params: PyTree, layout: str) -> tuple[VisionTransformer, Params, list[str]]:
    """Returns the model and its parameters as a layout can hold them, and the changes, a line each.

    The model's outputs stay the same: the class token's position embedding is added to the class token where the layout
    has no row for it (or is zero where it has one), a mask token is left out (or zero). A model that the layout holds
    is returned as it is, and so is one that it cannot hold: `to_state_dict` says why.
    """
    steps = steps_to(get_layout(layout), model.config)
    if not steps:
        return model, params, []
    flat = flat_params(model, params)
    for step in steps:
        flat = step.change(flat)
    fitted = model.clone(config=after(steps, model.config))
    return fitted, unflatten_dict(flat, sep="/"), [step.note for step in steps]


def save(
    path: str | os.PathLike[str],
    model: Model,
    params: PyTree,
    layout: str | None = None,
    preprocessing: Preprocessing | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> list[str]:
    """Writes the parameters in a layout: to a .safetensors, .npz, .pth, .pt, .bin or .msgpack file, or to a folder.

    A folder has no suffix, or .orbax: then Orbax's tree of this library's own parameters, `params/`, stands in it with
    the config and preprocessing.json. A safetensors file carries the config, so `load` needs nothing else. Errors are
    those of `to_state_dict`; nothing is left behind when one occurs.

    `preprocessing` (as `read_preprocessing` returns it) holds the class names too. A safetensors file carries it; a
    folder gets preprocessing.json and the files of the layout's own library, transformers' preprocessor_config.json and
    names in config.json, or timm's config.json; beside a file of another kind it is NAME.preprocessing.json.
    `tokenizer`, of a two-tower model, is a folder whose tokeniser's files are copied into the written one.
    `class_names` counts where there is no `preprocessing`, for transformers' config.json, which takes the names alone.

    Returns:
        What the files of the layout's own library cannot express, a line each.
    """
    copies = {} if tokenizer is None else tokenizer_files(Path(tokenizer))
    if tokenizer is not None and not copies:
        raise ConversionError(f"{tokenizer}: holds no tokeniser (looked for {', '.join(TOKENIZER_FILES)})")
    chosen = layout_to_write(model.config, layout, path)
    file = chosen.config_file(model.config) if chosen.config_file else None
    beside = beside_weights(chosen.name, model.config, file, preprocessing, class_names)
    tensors = chosen.write(flat_params(model, params), model.config)
    config = {**model.config.to_dict(), "layout": chosen.name}
    if tokenizer is not None and chosen.name == own_layout(model.config).name:
        config["texts"] = text_owner(Path(tokenizer))
    write_checkpoint(path, tensors, config, beside.config_file, beside.files, beside.stored, copies)
    return beside.notes
