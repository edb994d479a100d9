"""`vit-flax features`: what a model makes of image files, before its head."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.cli.images import add_model_options, load_model

EXAMPLE = """example:
  vit-flax features vit.safetensors --config vit_tiny_patch16_224 *.jpg -o features.npz
  vit-flax features vit.safetensors --config vit_tiny_patch16_224 --tokens *.jpg -o tokens.npz"""


def add_parser(commands: Any) -> None:
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
    parser.add_argument(
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
    print(f"... {loaded.origin}", file=sys.stderr)
    compute = loaded.predictor.features if options.tokens else loaded.predictor.embeddings
    found = compute(options.images).astype(np.float32)
    np.savez(target, features=found, images=np.asarray(options.images))
    if options.json:
        print(json.dumps({"file": str(target), "shape": list(found.shape)}))
    else:
        print(f"wrote {target}: features {' x '.join(map(str, found.shape))}")
    return 0
