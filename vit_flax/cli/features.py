"""`vit-flax features`: what a model makes of image files, before its head."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vit_flax.cli.images import add_model_options, compute, explain_bad, is_projection, load_model

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands
    from vit_flax.reading import Reading

EXAMPLE = """example:
  vit-flax features vit.safetensors --config vit_tiny_patch16_224 *.jpg -o features.npz
  vit-flax features vit.safetensors --config vit_tiny_patch16_224 --tokens *.jpg -o tokens.npz"""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "features",
        help="write image features",
        description="Writes a .npz file of 'features', one row an image, and 'images', their paths.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=".npz file to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--projected",
        action="store_true",
        help="the vector that is compared with texts: CLIP's get_image_features, not normalised",
    )
    which.add_argument(
        "--tokens",
        action="store_true",
        help="all tokens after the final norm (default: the vector that the head reads)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    target = Path(options.output)
    if target.suffix != ".npz":
        raise ValueError(f"{target}: must end in .npz")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"{target}: its folder does not exist")
    loaded = load_model(options)
    method = "features" if options.tokens else "embeddings"
    if options.projected:
        method = _projected(loaded.reading)
    loaded.show_notes()
    found, bad = compute(loaded, method, options.images)
    good = [path for index, path in enumerate(options.images) if index not in bad]
    np.savez(target, features=found.astype(np.float32), images=np.asarray(good))
    if options.json:
        told = {"file": str(target), "shape": list(found.shape), "notes": loaded.notes}
        named = {options.images[index]: reason for index, reason in bad.items()}
        print(json.dumps({**told, "bad": named}))
    else:
        print(f"wrote {target}: features {' x '.join(map(str, found.shape))}")
    if bad:
        explain_bad(bad, options.images, "features")
    return 1 if bad else 0


def _projected(reading: Reading) -> str:
    """Returns the predictor's method that gives the vector in the space that texts share.

    Raises:
        ValueError: the model has no such space.
    """
    if is_projection(reading):
        return "logits"
    if reading.layout.name.startswith("huggingface_siglip") and reading.config.global_pool == "map":
        return "embeddings"  # SigLIP's pooled vector is that already
    raise ValueError(f"{reading.checkpoint.source}: has no projection into a space of texts: leave --projected out")
