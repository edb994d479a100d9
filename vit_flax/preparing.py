"""Preprocessing and class names of a checkpoint: read from the files beside its weights, and written there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_flax.config import ModelConfig, ViTConfig
from vit_flax.convert import Checkpoint, ConversionError, read_checkpoint
from vit_flax.convert.files import preprocessing_beside
from vit_flax.convert.folder import read_json
from vit_flax.convert.timm_config import TIMM_LAYOUTS
from vit_flax.convert.timm_config_file import timm_config
from vit_flax.preprocessing import labels
from vit_flax.preprocessing.evaluation import PATCHES, PREPROCESSING_FILE, Preprocessing
from vit_flax.preprocessing.huggingface import PROCESSOR_FILE, read_processor, write_processor
from vit_flax.preprocessing.timm_config import OPEN_CLIP_FILE, read_open_clip, read_timm, write_timm
from vit_flax.presets import find_preset, get_preset

NESTED_FILE = "processor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
UNTOLD = "nothing tells how images are normalised: mean and std of 0.5 are taken"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The preprocessing of a checkpoint's images, and its source."""

    value: Preprocessing
    origin: str
    is_told: bool = True  # False: no file or preset says it, and the default is taken


def read_preprocessing(
    path: str | os.PathLike[str], config: str | None = None, *, image_size: tuple[int, int] | None = None
) -> Preprocessing:
    """Returns the preprocessing of images for the weights at `path`, with their class names.

    The metadata of the weights file counts first, then preprocessing.json, timm's config.json, and transformers'
    processor_config.json or preprocessor_config.json. open_clip_config.json counts before transformers' files where the
    weights are named open_clip*, and otherwise where there are none.

    Args:
        path: as for `vit_flax.load`.
        config: a preset's name, which counts where no file has a preprocessing.
        image_size: (height, width) of the model, to which the preprocessing is scaled; None: the stored size.

    Raises:
        ConversionError: there are no weights, or a file beside them is broken.
        ValueError: there is no preprocessing, or one that `Preprocessing` cannot express.
    """
    checkpoint = read_checkpoint(path)
    found = find_preprocessing(checkpoint, config, image_size)
    if not found.is_told:
        raise ValueError(f"{checkpoint.source}: nothing beside the weights tells how images are prepared")
    return found.value if image_size is None else found.value.for_model(image_size, found.value.channels)


def find_preprocessing(
    checkpoint: Checkpoint, preset: str | None = None, image_size: tuple[int, int] | None = None
) -> Prepared:
    """Returns the preprocessing of an opened checkpoint; the default has mean and std of 0.5.

    Raises:
        ConversionError: a file beside it is broken.
        ValueError: `Preprocessing` cannot express the one beside it; the message says why.
    """
    try:
        found = _beside(checkpoint)
    except ValueError as error:
        if isinstance(error, ConversionError) or checkpoint.path is None:
            raise
        raise ValueError(f"{checkpoint.path.parent}: {error}") from error
    if found is None and preset is not None and (known := find_preset(preset)) and known.mean:
        found = Prepared(of_preset(preset, image_size), f"preset {preset}")
    if found is None:
        value = Preprocessing(image_size=image_size or (224, 224), mean=(0.5,), std=(0.5,))
        found = Prepared(value, UNTOLD, is_told=False)
    return dataclasses.replace(found, value=with_labels(found.value, checkpoint))


def with_labels(value: Preprocessing, checkpoint: Checkpoint) -> Preprocessing:
    """Returns the value with the class names beside the weights, unless it has its own."""
    if value.class_names is not None:
        return value
    names, described = labels.read_labels(config_of_library(checkpoint))
    return value.replace(class_names=names, class_descriptions=described) if names else value


def of_preset(name: str, image_size: tuple[int, int] | None = None) -> Preprocessing:
    """Returns a preset's preprocessing; that of a model on the Hugging Face hub resizes as transformers does."""
    value = Preprocessing.from_preset(get_preset(name), image_size)
    if "/" not in name:
        return value
    floats = "dinov3" in name
    return value.replace(resizer="torchvision_floats" if floats else "torchvision", exif=True)


def read_file(path: Path) -> Preprocessing:
    """Returns the preprocessing in a JSON file of any library above, whatever its name.

    Raises:
        ConversionError: the file holds no JSON object.
        ValueError: there is no such file, or `Preprocessing` cannot express its values.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    values = read_json(path)
    if "architecture" in values and (found := read_timm(values)):
        return found
    if "preprocess_cfg" in values and (found := read_open_clip(values)):
        return found
    if {"image_mean", "image_processor_type", "feature_extractor_type", "do_resize", "do_normalize"} & values.keys():
        return read_processor(values, None, str(path))
    return Preprocessing.from_dict(values)


def _beside(checkpoint: Checkpoint) -> Prepared | None:
    if checkpoint.preprocessing is not None:
        return Prepared(Preprocessing.from_dict(checkpoint.preprocessing), "stored with the weights")
    if (path := checkpoint.path) is None:
        return _of_config(checkpoint.config or {})
    for file in (preprocessing_beside(path), path.with_name(PREPROCESSING_FILE)):
        if file.is_file():
            return Prepared(Preprocessing.from_dict(read_json(file)), file.name)
    config = config_of_library(checkpoint)
    found = _of_config(config)
    clip = path.with_name(OPEN_CLIP_FILE)
    if found is None and clip.is_file() and (path.name.startswith("open_clip") or not _processor(path)):
        told = read_open_clip(read_json(clip))
        found = told and Prepared(told, OPEN_CLIP_FILE)
    if found is None and (processor := _processor(path)):
        values, origin = processor
        found = Prepared(read_processor(values, config.get("model_type"), origin), origin)
    if found is None and path.with_name(VIDEO_FILE).is_file():
        raise ValueError(f"{VIDEO_FILE}: videos are prepared otherwise, and this library reads images only")
    return _with_models_own(found, config)


_IN_MODEL = ("norm_mean", "norm_std")  # attributes of a config.json whose model normalises images itself: RADIO's


def _with_models_own(found: Prepared | None, config: Mapping[str, Any]) -> Prepared | None:
    """Composes a preprocessing with the normalisation inside the owner's model, which models here leave outside."""
    if not all(name in config for name in _IN_MODEL):
        return found
    mean, std = (tuple(map(float, config[name])) for name in _IN_MODEL)
    if found is None:
        return Prepared(Preprocessing(image_size=None, mean=mean, std=std), "config.json")
    value = found.value
    both = {
        "mean": tuple(m + s * own for m, s, own in zip(value.mean, value.std, mean, strict=True)),
        "std": tuple(s * own for s, own in zip(value.std, std, strict=True)),
    }
    return dataclasses.replace(found, value=value.replace(**both))


def _without_models_own(value: Preprocessing, config_file: Mapping[str, Any]) -> Preprocessing:
    """Returns the preprocessing before a model that normalises images itself: the inverse of `_with_models_own`."""
    mean, std = (tuple(map(float, config_file[name])) for name in _IN_MODEL)
    left = tuple(s / own for s, own in zip(value.std, std, strict=True))
    first = tuple(m - s * own for m, s, own in zip(value.mean, left, mean, strict=True))
    return value.replace(mean=first, std=left)


def _of_config(config: Mapping[str, Any]) -> Prepared | None:
    found = read_timm(config)
    return found and Prepared(found, "config.json")


def _processor(path: Path) -> tuple[Mapping[str, Any], str] | None:
    """Returns the image processor's values and their file: processor_config.json first, as in transformers."""
    nested = path.with_name(NESTED_FILE)
    if nested.is_file() and isinstance(values := read_json(nested).get("image_processor"), dict):
        return values, NESTED_FILE
    file = path.with_name(PROCESSOR_FILE)
    return (read_json(file), PROCESSOR_FILE) if file.is_file() else None


def config_of_library(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Returns another library's config.json, also where the weights carry a config of this library."""
    config = checkpoint.config or {}
    if "model_config" in config and checkpoint.path is not None:
        beside = checkpoint.path.with_name("config.json")
        return read_json(beside) if beside.is_file() else config
    return config


@dataclasses.dataclass(frozen=True)
class BesideWeights:
    """Files to write beside weights, which keep their preprocessing and class names."""

    config_file: (
        Mapping[str, object] | None
    )  # the layout's own library's config.json; None: it has none, ours is written
    files: Mapping[str, Mapping[str, object]]
    stored: Mapping[str, object] | None  # metadata of a weights file that can carry it
    notes: list[str]  # what the files of the layout's own library cannot express


def beside_weights(
    layout: str,
    config: ModelConfig,
    config_file: Mapping[str, object] | None,
    value: Preprocessing | None,
    class_names: labels.Names | None = None,
) -> BesideWeights:
    """Returns the files to write beside weights of a layout.

    Args:
        layout: the layout's name.
        config: config of the model.
        config_file: the config.json of the layout's own library, without class names.
        value: the preprocessing; None: unknown.
        class_names: class names, where there is no preprocessing to hold them.
    """
    if value is None and class_names and len(class_names) == config.num_classes:
        if layout.startswith("huggingface") and config_file is not None:
            return BesideWeights({**config_file, **_labels(class_names)}, {}, None, [])
        note = "the names of the classes are not written: they belong to a preprocessing, and none is known"
        return BesideWeights(config_file, {}, None, [note])
    if value is None:
        return BesideWeights(config_file, {}, None, [])
    names = value.class_names if len(value.class_names or ()) == config.num_classes else None
    if layout.startswith("huggingface"):
        value = as_transformers(value)
        owners = value
        if config_file is not None and all(name in config_file for name in _IN_MODEL):
            owners = _without_models_own(value, config_file)
        written: Mapping[str, Any] | str = write_processor(owners)
        if layout.startswith("huggingface_siglip2") != (value.crop_mode == PATCHES):
            written = "Siglip2ImageProcessor makes no images of one size, and other processors no others"
        if config_file is not None and names:
            config_file = {**config_file, **_labels(value.class_descriptions or names)}
        files: dict[str, Any] = {} if isinstance(written, str) else {PROCESSOR_FILE: written}
        notes = [f"no {PROCESSOR_FILE} is written: {written}"] if isinstance(written, str) else []
    else:
        files, notes = {}, []
        if layout in {timm.name for timm in TIMM_LAYOUTS} and isinstance(config, ViTConfig):
            config_file, notes = _timm_file(config, value, names)
    stored = value.to_dict()
    return BesideWeights(config_file, {PREPROCESSING_FILE: stored, **files}, stored, notes)


def _labels(names: labels.Names) -> dict[str, dict[str, object]]:
    """Returns the class names in the form of transformers' config.json."""
    return {"id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)}}  # fmt: skip


def _timm_file(
    config: ViTConfig, value: Preprocessing, names: labels.Names | None
) -> tuple[Mapping[str, Any] | None, list[str]]:
    """Returns timm's config.json and notes; None where it cannot express the model, and the notes say why."""
    written, told = write_timm(value), timm_config(config)
    if isinstance(written, str):
        return None, [f"no config.json of timm's is written: {written}"]
    if told is None:
        return None, ["no config.json of timm's is written: it cannot express this architecture"]
    named: dict[str, Any] = {"label_names": list(names)} if names else {}
    if names and value.class_descriptions:
        named["label_descriptions"] = dict(zip(names, value.class_descriptions, strict=True))
    cfg = {**written, "num_classes": config.num_classes, "fixed_input_size": True}
    notes = []
    if value.resizer != "pillow":
        notes.append("timm resizes with Pillow, these images are resized as transformers does: logits differ slightly")
    if value.exif:
        notes.append("timm ignores the EXIF orientation, which is applied here")
    return {**told, **named, "pretrained_cfg": cfg}, notes


def as_transformers(value: Preprocessing) -> Preprocessing:
    """Returns the value as transformers' processors apply it: tensors are resized, the EXIF orientation is applied."""
    if value.channels != 3 or value.interpolation in ("box", "hamming") or value.crop_mode == "border":
        return value
    resizer = "torchvision" if value.resizer == "pillow" else value.resizer
    return value.replace(resizer=resizer, exif=True)
