"""`vit-flax convert`: rewrites a checkpoint in another layout or file format."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_flax.cli.options import (
    CHECKPOINT,
    add_checkpoint_options,
    add_tower_option,
    preset_of,
    spelled_notes,
    tell_notes,
    wish_of,
)
from vit_flax.cli.parser import known_layout
from vit_flax.convert import get_layout, holds_text, layout_to_write, open_checkpoint
from vit_flax.convert.folder import tokenizer_files
from vit_flax.convert.orbax_folder import SUFFIX as ORBAX
from vit_flax.convert.own_params import FLAX

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands
    from vit_flax.convert import Checkpoint
    from vit_flax.preprocessing.evaluation import Preprocessing
    from vit_flax.reading import Reading

EXAMPLE = """example:
  vit-flax convert tutorial.pth tutorial.safetensors --set num_heads=4 --set image_size=60,100
  vit-flax convert dinov2/ small.safetensors --set image_size=224 --resample bicubic
  vit-flax convert best/ params.orbax
  vit-flax convert timm.safetensors vit.npz --config vit_base_patch16_224.augreg_in21k --layout torchvision"""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "convert",
        help="rewrite a checkpoint in another layout or format",
        description="Reads a checkpoint, checks that every tensor has its place, and writes it bit for bit.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help=CHECKPOINT)
    parser.add_argument("target", help="file to write (its suffix says how), or a folder: no suffix, or .orbax")
    parser.add_argument(
        "--layout", type=known_layout, metavar="LAYOUT", help="layout to write (default: the one that was read)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_checkpoint_options(parser, layout="--from")
    add_tower_option(parser)
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="whose tokeniser is copied beside both towers (default: the source's)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    wish = wish_of(options)
    if wish.tower is None and options.layout is not None and not holds_text(get_layout(options.layout)):
        wish = dataclasses.replace(wish, tower="image")  # that layout holds an image tower
    checkpoint = open_checkpoint(options.source, wish)  # before JAX is imported: a bad file is reported at once
    opened = spelled_notes(checkpoint.notes, options)
    tell_notes(opened)

    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)  # so that float64 tensors keep their dtype
    from vit_flax.models import VisionTransformer
    from vit_flax.preparing import config_of_library
    from vit_flax.preprocessing.labels import read_labels
    from vit_flax.pretrained import fit_layout, save
    from vit_flax.reading import read_model

    reading = read_model(checkpoint, wish)
    target = options.layout or reading.layout.name
    if Path(options.target).suffix == ORBAX:
        target = layout_to_write(reading.config, options.layout, options.target).name
    preprocessing, notes = _preprocessing(checkpoint, reading, preset_of(options))
    notes = [*reading.checkpoint.notes[len(checkpoint.notes) :], *notes]
    model, params = reading.build()
    if isinstance(model, VisionTransformer):
        model, params, done = fit_layout(model, params, target)
        notes += done
    tokenizer, untold = _tokenizer(options, checkpoint, reading)
    names = read_labels(config_of_library(checkpoint))[0] if preprocessing is None else None
    notes += save(options.target, model, params, target, preprocessing, tokenizer, class_names=names) + untold
    notes = spelled_notes(notes, options)
    tell_notes(notes)
    if options.json:
        found = {"source": checkpoint.source, "target": options.target, "tensors": len(checkpoint.shapes)}
        found |= {"from": reading.layout.name, "to": target, "notes": [*opened, *notes]}
        print(json.dumps(found, indent=1))
    else:
        print(f"wrote {options.target}: {len(checkpoint.shapes)} tensors from {reading.layout.name} to {target}")
    return 0


def _tokenizer(options: argparse.Namespace, checkpoint: Checkpoint, reading: Reading) -> tuple[Path | None, list[str]]:
    """Returns the folder whose tokeniser is copied, and notes where none is.

    Raises:
        ValueError: --tokenizer is given and the target is no folder of both towers.
    """
    both, is_folder = holds_text(reading.layout), Path(options.target).suffix in ("", ORBAX)
    if options.tokenizer is not None:
        if not (both and is_folder):
            missing = f"a folder is written (no suffix, or {ORBAX})" if both else "both towers are"
            raise ValueError(f"--tokenizer is copied where {missing}: leave it out")
        return Path(options.tokenizer), []
    folder = None if checkpoint.path is None else checkpoint.path.parent
    if not both:
        return None, []
    if folder is None or not tokenizer_files(folder):
        return None, ["no tokeniser lies beside the weights: --tokenizer FOLDER copies one"] if is_folder else []
    if not is_folder:
        return None, [f"the tokeniser stays in {folder}: a folder in place of {options.target} gets a copy"]
    told: Any = checkpoint.config or {}
    kept = options.layout is None or options.layout.startswith(("open_clip", FLAX.name))
    mended = "model_cfg" in (told.get("texts") or told) and not kept
    said = "open_clip cleans texts (spaces, HTML, ftfy) before its tokeniser, which these files alone do not say"
    return folder, [said] * mended


def _preprocessing(
    checkpoint: Checkpoint, reading: Reading, preset: str | None
) -> tuple[Preprocessing | None, list[str]]:
    """Returns the checkpoint's preprocessing, and notes where it cannot be written."""
    from vit_flax.preparing import find_preprocessing

    try:
        prepared = find_preprocessing(checkpoint, preset)
        if not prepared.is_told:
            return None, []
        if "image_size" in reading.wish.overrides or prepared.value.image_size is None:
            return prepared.value.for_model(reading.config.image_size, reading.config.in_chans), []
        return prepared.value, []
    except ValueError as error:  # the weights are written all the same
        return None, [f"the preprocessing of images is not written: {error}"]
