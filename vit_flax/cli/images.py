"""What the commands that run a model on images share: reading it, and how its images are prepared."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_flax.cli.options import add_checkpoint_options, wish_of
from vit_flax.convert import open_checkpoint
from vit_flax.preprocessing.evaluation import CROP_MODES, INTERPOLATIONS, PREPROCESSING_FILE, Preprocessing

if TYPE_CHECKING:
    from vit_flax.inference import Predictor

_FIELDS = ("mean", "std", "crop_pct", "interpolation", "crop_mode")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the checkpoint, and how its images are prepared."""
    parser.add_argument("checkpoint", help=".safetensors, .npz, .pth or .bin file, or a folder")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images computed together (default 64)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrix products (default float32)"
    )
    told = "(default: told by the files beside the checkpoint or by --config)"
    parser.add_argument("--mean", type=_numbers, metavar="X,X,X", help=f"of the channels, pixels in 0..1 {told}")
    parser.add_argument("--std", type=_numbers, metavar="X,X,X", help=f"of the channels {told}")
    parser.add_argument("--crop-pct", type=float, metavar="X", help="the centre crop's side over the resized image's")
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, help="how images are resized")
    parser.add_argument("--crop-mode", choices=CROP_MODES, help="squash: resize without regard to the aspect ratio")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_checkpoint_options(parser)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between them") from None


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model ready to run."""

    predictor: Predictor
    transform: Preprocessing
    origin: str  # what told how images are prepared
    class_names: tuple[str, ...] | None


def load_model(options: argparse.Namespace) -> Loaded:
    """Reads the checkpoint that the options name.

    Raises:
        ValueError: it cannot be read, or a value does not fit.
    """
    wish = wish_of(options)
    checkpoint = open_checkpoint(options.checkpoint, wish)  # before JAX: a bad file is told at once
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")

    import jax.numpy as jnp

    from vit_flax.inference import Predictor
    from vit_flax.reading import read_model

    model, params = read_model(checkpoint, wish).build()
    beside = _beside(Path(options.checkpoint))
    fields, origin = _told(beside, checkpoint.config or {}, options.config)
    given = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    if given:
        origin = f"{', '.join(given)} given; {origin}"
    fields |= given
    channels = model.config.in_chans
    for name in ("mean", "std"):
        if len(fields[name]) == 1:
            fields[name] = tuple(fields[name]) * channels
        if len(fields[name]) != channels:
            raise ValueError(f"{name} has {len(fields[name])} numbers, the model's images have {channels} channels")
    transform = Preprocessing(image_size=model.config.image_size, **fields)
    dtype = jnp.bfloat16 if options.dtype == "bfloat16" else None
    predictor = Predictor(model, params, options.batch_size, dtype, transform)
    return Loaded(predictor, transform, origin, _class_names(beside, checkpoint.config or {}))


def _beside(path: Path) -> dict[str, Any]:
    """Returns what a training run wrote about its images beside the weights."""
    file = (path if path.is_dir() else path.parent) / PREPROCESSING_FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: not a JSON object")
    return found


def _told(beside: Mapping[str, Any], config: Mapping[str, Any], preset: str | None) -> tuple[dict[str, Any], str]:
    """Returns the fields of the transform and what told them."""
    from vit_flax.presets import PRESETS

    fields: dict[str, Any] = {"mean": (0.5,), "std": (0.5,)}
    timm = config.get("pretrained_cfg") or {}
    for values, origin in ((beside, PREPROCESSING_FILE), (timm, "config.json")):
        if values.get("mean") and values.get("std"):
            told = {name: values[name] for name in _FIELDS if values.get(name) is not None}
            return fields | {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}, origin
    if preset in PRESETS and PRESETS[preset].mean:
        found = PRESETS[preset]
        return {name: getattr(found, name) for name in _FIELDS}, f"preset {preset}"
    return fields, "nothing tells how images are normalised: mean and std of 0.5 are taken"


def _class_names(beside: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...] | None:
    if names := beside.get("class_names") or config.get("label_names"):
        return tuple(map(str, names))
    labels = config.get("id2label")  # Hugging Face's
    if isinstance(labels, dict) and sorted(labels) == sorted(map(str, range(len(labels)))):
        return tuple(str(labels[str(index)]) for index in range(len(labels)))
    return None
