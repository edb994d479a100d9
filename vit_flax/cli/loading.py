"""Loads a model and its image preprocessing, for the commands that run a model on images."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_flax.cli.image_options import given_preprocessing
from vit_flax.cli.options import preset_of, spelled_notes, tell_notes, wish_of
from vit_flax.convert import open_checkpoint
from vit_flax.preprocessing import labels
from vit_flax.preprocessing.evaluation import PATCHES, Preprocessing

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from vit_flax.config import ViTConfig
    from vit_flax.convert import Checkpoint, Wish
    from vit_flax.inference import Predictor
    from vit_flax.models import TwoTowers
    from vit_flax.preparing import Prepared
    from vit_flax.reading import Reading
    from vit_flax.zero_shot import ZeroShot

_ANY_SIZE = ("huggingface_dinov2", "huggingface_dinov3")  # models of transformers that take images of any size


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with its preprocessing, ready to run."""

    predictor: Predictor
    transform: Preprocessing
    origin: str  # source of the preprocessing
    reading: Reading
    notes: list[str]
    shown: int  # number of notes already printed
    towers: tuple[TwoTowers, PyTree] | None = None  # the two-tower model and its parameters

    @property
    def class_names(self) -> labels.Names | None:
        """The class names, None where they are unknown."""
        return self.transform.class_names

    def show_notes(self) -> None:
        """Prints to stderr the source of the preprocessing, and the notes not yet printed."""
        if self.origin not in self.notes:
            print(f"... {self.origin}", file=sys.stderr)
        tell_notes(self.notes[self.shown :])

    def zero_shot(self, names: Sequence[str], templates: Sequence[str] | None, tokenizer: str | None) -> ZeroShot:
        """Returns the zero-shot classifier of these class names and prompt templates.

        Raises:
            ValueError: there is no tokeniser or another model's, or names or templates are unusable.
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
            ValueError: there is no head, its weights are random, or it is a projection to an embedding.
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
    """Returns whether the model's head is a projection into the joint embedding space of CLIP and its like."""
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
    """Loads the checkpoint of the options; of two towers the image tower, or with `tower="both"` both.

    Raises:
        ValueError: the checkpoint cannot be read, or a value does not fit.
    """
    wish = dataclasses.replace(wish_of(options), float32=True, tower=tower)
    checkpoint = open_checkpoint(options.checkpoint, wish)  # before JAX: a bad file is reported at once
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
        notes.append(f"images are {size[0]}x{size[1]}, as {prepared.origin} says: the position embeddings are resized "
                     f"from {reading.config.image_size[0]}x{reading.config.image_size[1]}")  # fmt: skip
        reading = sized
    model, params = reading.build()
    towers = None
    if isinstance(model, TwoTowers):
        towers = (model, params)
        model, params = VisionTransformer(model.config.image), params["image"]
    transform = _patches_of(model.config, prepared).for_model(model.config.image_size, model.config.in_chans)
    transform, origin = given_preprocessing(options, transform, prepared.origin, model.config.image_size)
    transform = _with_names(transform, options, reading, notes) if towers is None else transform
    if transform.exif:
        notes.append("the EXIF orientation of photographs is applied (--no-exif ignores it)")
    if not prepared.is_told and (options.mean is None or options.std is None):
        notes.append(prepared.origin)
    dtype = jnp.bfloat16 if options.dtype == "bfloat16" else None
    # images of variable size, which some models of transformers take by default
    anysize = transform.varies and reading.layout.name.startswith(_ANY_SIZE)
    if anysize:  # pixels beyond the last whole patch are cropped there
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
    """Returns the preprocessing; a NaFlex model's default allows as many patches as its position table has."""
    if prepared.is_told or not config.tokens.pads:
        return prepared.value
    usual = {"image_size": None, "patch_size": config.patch_size[0], "max_num_patches": config.num_patches}
    return prepared.value.replace(crop_mode=PATCHES, interpolation="bilinear", resizer="torchvision", **usual)


def _resized_for(prepared: Prepared, reading: Reading, wish: Wish) -> Reading | None:
    """Returns the reading at the image size of transformers' processor, None where that is the model's.

    Raises:
        ValueError: transformers would refuse images of that size.
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
        f"resizes the position embeddings, --set image_size={config.image_size[0]},{config.image_size[1]} the images"
    )


def _with_names(value: Preprocessing, options: argparse.Namespace, reading: Reading, notes: list[str]) -> Preprocessing:
    """Returns the value with the model's class names, where they are known."""
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
