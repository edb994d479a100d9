"""Loading and image preprocessing, shared by the commands that run a model on images."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vit_flax.cli.options import (
    CHECKPOINT,
    add_checkpoint_options,
    numbers,
    preset_of,
    spelled_notes,
    tell_notes,
    wish_of,
)
from vit_flax.cli.progress import Progress
from vit_flax.convert import open_checkpoint
from vit_flax.preprocessing import labels
from vit_flax.preprocessing.decode import SUFFIXES
from vit_flax.preprocessing.evaluation import CROP_MODES, INTERPOLATIONS, PATCHES, Preprocessing

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from vit_flax.config import ViTConfig
    from vit_flax.convert import Checkpoint, Wish
    from vit_flax.inference import Predictor
    from vit_flax.models import TwoTowers
    from vit_flax.preparing import Prepared
    from vit_flax.reading import Reading
    from vit_flax.zero_shot import ZeroShot

_T = TypeVar("_T")
_FIELDS = ("mean", "std", "crop_pct", "interpolation", "crop_mode", "exif", "pixel_range", "max_num_patches")
_ANY_SIZE = ("huggingface_dinov2", "huggingface_dinov3")  # their models take images of any size, without being asked


def add_model_options(parser: argparse.ArgumentParser, batches: bool = True) -> None:
    """Adds the checkpoint, and how its images are prepared; `batches`: and how many are computed together."""
    parser.add_argument("checkpoint", help=CHECKPOINT)
    parser.set_defaults(batch_size=1)
    if batches:
        told = "images computed together (default 64)"
        parser.add_argument("--batch-size", type=int, default=64, metavar="N", help=told)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrix products (default float32)"
    )
    told = "(default: told by the files beside the checkpoint or by --config)"
    parser.add_argument("--mean", type=numbers, metavar="X,X,X", help=f"of the channels, pixels in 0..1 {told}")
    parser.add_argument("--std", type=numbers, metavar="X,X,X", help=f"of the channels {told}")
    parser.add_argument("--crop-pct", type=float, metavar="X", help="the centre crop's side over the resized image's")
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, help="how images are resized")
    parser.add_argument("--crop-mode", choices=CROP_MODES, help="squash: resize without regard to the aspect ratio")
    parser.add_argument(
        "--max-num-patches",
        type=int,
        metavar="N",
        help="that an image is cut into, of NaFlex models (default: as told)",
    )
    parser.add_argument(
        "--exif",
        action=argparse.BooleanOptionalAction,
        help="turn photographs as their EXIF data say (default: as the weights' own library, transformers does)",
    )
    parser.add_argument(
        "--pixel-range", type=numbers, metavar="BLACK,WHITE", help="of images of more than 8 bits: 0,65535, say"
    )
    parser.add_argument(
        "--preprocessing", metavar="FILE", help="preprocessing.json or preprocessor_config.json to follow instead"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_checkpoint_options(parser)


def add_label_option(parser: argparse.ArgumentParser) -> None:
    """Adds the names of the classes."""
    parser.add_argument("--labels", metavar="FILE", help="names of the model's classes, one a line")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model ready to run."""

    predictor: Predictor
    transform: Preprocessing
    origin: str  # what told how images are prepared
    reading: Reading
    notes: list[str]
    shown: int  # how many of the notes have been printed
    towers: tuple[TwoTowers, PyTree] | None = None  # both, of a model of images and texts

    @property
    def class_names(self) -> labels.Names | None:
        """What the classes are called, if that is known."""
        return self.transform.class_names

    def show_notes(self) -> None:
        """Prints to stderr what told how images are prepared, and whatever else matters."""
        if self.origin not in self.notes:
            print(f"... {self.origin}", file=sys.stderr)
        tell_notes(self.notes[self.shown :])

    def zero_shot(self, names: Sequence[str], templates: Sequence[str] | None, tokenizer: str | None) -> ZeroShot:
        """Returns the classifier that the names make of a model of images and texts.

        Raises:
            ValueError: there is no tokeniser, or it is another model's; or the names and templates do not do.
        """
        from vit_flax.tokenizing import find_tokenizer
        from vit_flax.zero_shot import TEMPLATE, ZeroShot

        assert self.towers is not None
        model, params = self.towers
        found = find_tokenizer(self.reading.checkpoint, model.config, tokenizer)
        return ZeroShot.of(model, params, names, templates or [TEMPLATE], tokenizer=found)

    def require_classes(self, command: str) -> int:
        """Returns the number of classes.

        Raises:
            ValueError: there is no head, or what comes out of it is an embedding.
        """
        source, config = self.reading.checkpoint.source, self.predictor.model.config
        if not config.num_classes:
            raise ValueError(f"{source}: has no head, so there is nothing to {command}: use vit-flax features")
        if self.reading.fresh:
            told = self.reading.checkpoint.notes[-1]
            raise ValueError(f"{source}: {told}, so there is nothing to {command}: leave num_classes out")
        if is_projection(self.reading):
            raise ValueError(
                f"{source}: is the image tower of a model of images and texts: its {config.num_classes} outputs are an "
                f"embedding, no classes, so there is nothing to {command}: use vit-flax features --projected"
            )
        return config.num_classes


def is_projection(reading: Reading) -> bool:
    """Returns whether the model's head is the projection of CLIP and its like into a space that texts share."""
    config, layout = reading.config, reading.layout.name
    if not config.num_classes:
        return False
    if not getattr(config, "head_bias", True) or layout.startswith("open_clip"):
        return True
    from vit_flax.presets import PRESETS

    cfg: Mapping[str, Any] = reading.checkpoint.config or {}
    told = cfg.get("pretrained_cfg") or cfg
    name = f"{cfg['architecture']}.{told.get('tag')}" if "architecture" in cfg else reading.wish.config
    if not isinstance(name, str) or not any(part in name for part in ("_clip_", "pe_core")) or "_ft_" in name:
        return False
    preset = PRESETS.get(name) or PRESETS.get(name.split(".")[0])
    return preset is not None and preset.config.num_classes == config.num_classes


def load_model(options: argparse.Namespace, tower: str = "image") -> Loaded:
    """Reads the checkpoint that the options name; of a model of images and texts the image tower, or 'both'.

    Raises:
        ValueError: it cannot be read, or a value does not fit.
    """
    wish = dataclasses.replace(wish_of(options), float32=True, tower=tower)
    checkpoint = open_checkpoint(options.checkpoint, wish)  # before JAX: a bad file is told at once
    tell_notes(spelled_notes(checkpoint.notes, options))
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    prepared = _prepared(options, checkpoint)

    import jax.numpy as jnp

    from vit_flax.inference import Predictor
    from vit_flax.models import TwoTowers, VisionTransformer
    from vit_flax.reading import read_model

    reading, sized = read_model(checkpoint, wish), None
    notes, shown = spelled_notes(reading.checkpoint.notes, options), len(checkpoint.notes)
    if options.preprocessing is None:
        sized = _resized_for(prepared, reading, wish)
    if sized is not None:
        size = sized.config.image_size
        notes.append(f"images are {size[0]}x{size[1]}, as {prepared.origin} says: the model's positions are resized "
                     f"from {reading.config.image_size[0]}x{reading.config.image_size[1]}")  # fmt: skip
        reading = sized
    model, params = reading.build()
    towers = None
    if isinstance(model, TwoTowers):
        towers = (model, params)
        model, params = VisionTransformer(model.config.image), params["image"]
    transform = _patches_of(model.config, prepared).for_model(model.config.image_size, model.config.in_chans)
    transform, origin = _given(options, transform, prepared.origin, model.config.image_size)
    transform = _with_names(transform, options, reading, notes) if towers is None else transform
    if transform.exif:
        notes.append("photographs are turned as their EXIF data say (--no-exif leaves them)")
    if not prepared.is_told and not {"mean", "std"} <= {name for name in _FIELDS if getattr(options, name) is not None}:
        notes.append(prepared.origin)
    dtype = jnp.bfloat16 if options.dtype == "bfloat16" else None
    # images that are not cut to one size: some models of transformers take any, without being asked
    anysize = transform.varies and reading.layout.name.startswith(_ANY_SIZE)
    if anysize:  # and leave out what is beyond the last whole patch
        model = model.clone(config=model.config.replace(crop_to_patches=True))
    resample = (reading.layout.resample(model.config) or "bicubic") if anysize else None
    predictor = Predictor(model, params, options.batch_size, dtype, transform, resample=resample)
    return Loaded(predictor, transform, origin, reading, notes, shown, towers)


def _prepared(options: argparse.Namespace, checkpoint: Checkpoint) -> Prepared:
    from vit_flax.preparing import Prepared, find_preprocessing, read_file, with_labels

    if options.preprocessing is not None:
        return Prepared(with_labels(read_file(Path(options.preprocessing)), checkpoint), options.preprocessing)
    try:
        return find_preprocessing(checkpoint, preset_of(options))
    except ValueError as error:
        raise ValueError(f"{error}; --preprocessing FILE follows another file instead") from error


def _patches_of(config: ViTConfig, prepared: Prepared) -> Preprocessing:
    """Returns how images are prepared: untold, a NaFlex model gets as many patches as its table has places."""
    if prepared.is_told or not config.tokens.pads:
        return prepared.value
    usual = {"image_size": None, "patch_size": config.patch_size[0], "max_num_patches": config.num_patches}
    return prepared.value.replace(crop_mode=PATCHES, interpolation="bilinear", resizer="torchvision", **usual)


def _given(
    options: argparse.Namespace, value: Preprocessing, origin: str, image_size: tuple[int, int]
) -> tuple[Preprocessing, str]:
    """Returns the value with what the options say, and what told it all."""
    given = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    if not given:
        return value, origin
    if value.crop_mode == PATCHES and given.keys() & {"crop_pct", "crop_mode"}:
        value = value.of_one_size(image_size)
    if "max_num_patches" in given and value.crop_mode != PATCHES:
        raise ValueError("--max-num-patches is of NaFlex models, whose images are cut into patches at any size")
    if given.keys() & {"crop_pct", "crop_mode"}:
        given["resize_size"] = None
    if "pixel_range" in given and len(given["pixel_range"]) != 2:
        raise ValueError("--pixel-range must be two numbers, black and white: 0,65535, say")
    channels = value.channels
    for name in given.keys() & {"mean", "std"}:
        if len(given[name]) == 1:
            given[name] *= channels
        if len(given[name]) != channels:
            raise ValueError(f"{name} has {len(given[name])} numbers, the model's images have {channels} channels")
    named = ", ".join(name for name in given if name != "resize_size")
    return value.replace(**given), f"{named} given; {origin}"


def _resized_for(prepared: Prepared, reading: Reading, wish: Wish) -> Reading | None:
    """Returns the reading at the size that a processor of transformers prepares, where that is not the model's.

    Raises:
        ValueError: transformers would refuse such images.
    """
    import vit_flax.reading as reader

    size, config = prepared.value.image_size, reading.config
    if prepared.value.resizer == "pillow" or size in (None, config.image_size) or "image_size" in wish.overrides:
        return None
    assert size is not None
    if reading.layout.name.startswith(_ANY_SIZE):
        asked = dataclasses.replace(wish, overrides={**wish.overrides, "image_size": size})
        return reader.read_model(reading.checkpoint, asked)
    own, theirs = (f"{side[0]}x{side[1]}" for side in (config.image_size, size))
    raise ValueError(
        f"{prepared.origin} prepares images of {theirs}, the model takes {own}: --set image_size={size[0]},{size[1]} "
        f"resizes the model's positions, --set image_size={config.image_size[0]},{config.image_size[1]} the images"
    )


def _with_names(value: Preprocessing, options: argparse.Namespace, reading: Reading, notes: list[str]) -> Preprocessing:
    """Returns the value with the names of the model's classes, where they are known."""
    classes = reading.config.num_classes
    if getattr(options, "labels", None):
        names = tuple(Path(options.labels).read_text("utf-8").splitlines())
        if len(names) != classes:
            raise ValueError(f"{options.labels}: {len(names)} names for {classes} classes")
        return value.replace(class_names=names, class_descriptions=None)
    if value.class_names is not None and len(value.class_names) != classes:
        if classes and not is_projection(reading):
            notes.append(f"{len(value.class_names)} names are told for {classes} classes: classes are numbers")
        return value.replace(class_names=None, class_descriptions=None)
    if value.class_names is None and labels.is_imagenet(reading.checkpoint.config or {}, preset_of(options), classes):
        if found := labels.imagenet_names():
            return value.replace(class_names=found[0], class_descriptions=found[1])
        notes.append("classes are those of ImageNet-1k: their names come from timm's lists, pip install timm")
    return value


def explain_bad(bad: dict[int, str], names: list[str], command: str) -> None:
    """Prints to stderr which files were left out, and why."""
    print(f"vit-flax {command}: {len(bad)} of {len(names)} images cannot be read and are left out:", file=sys.stderr)
    for index, reason in sorted(bad.items()):
        print(f"  {names[index]}: {reason}", file=sys.stderr)


def compute(loaded: Loaded, method: str, images: list[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Returns the results of a predictor's method for the images that can be read, and why the others cannot.

    Raises:
        ValueError: none can be read.
    """
    bad: dict[int, str] = {}
    with Progress(len(images)) as progress:
        found = loaded.predictor.collect(method, counted(images, progress), bad)
    refuse_all_bad(bad, images)
    return found, bad


def refuse_all_bad(bad: dict[int, str], images: list[str]) -> None:
    """Raises ValueError where none of the images can be read, saying why."""
    if bad and len(bad) == len(images):
        shown = "; ".join(f"{images[index]}: {reason}" for index, reason in sorted(bad.items())[:3])
        raise ValueError(f"{shown}{f'; and {len(bad) - 3} more' if len(bad) > 3 else ''}")


def image_files(paths: list[str]) -> list[str]:
    """Returns the paths with every folder's image files in its place, in the order of their names.

    Raises:
        ValueError: a folder has none.
    """
    found: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        walked = [(folder, files) for folder, _, files in os.walk(path, followlinks=True)]
        inside = [os.path.join(folder, name) for folder, files in walked for name in files
                  if name.lower().endswith(SUFFIXES) and not name.startswith(".")]  # fmt: skip
        if not inside:
            raise ValueError(f"{path}: has no image files ({' '.join(SUFFIXES)})")
        found += sorted(inside)
    return found


def counted(images: Sequence[_T], progress: Progress) -> Iterator[_T]:
    """Yields images, and counts them as they are asked for."""
    for image in images:
        yield image
        progress.advance(1)
