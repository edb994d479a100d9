"""`vit-flax predict`: the top-k classes of image files."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

import numpy as np

from vit_flax.cli.image_files import compute, explain_bad, image_files
from vit_flax.cli.image_options import add_label_option, add_model_options
from vit_flax.cli.loading import load_model

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands

EXAMPLE = """example:
  vit-flax predict runs/digits/best photo.png
  vit-flax predict vit.safetensors --config vit_tiny_patch16_224 --labels imagenet.txt *.jpg"""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "predict",
        help="classify image files",
        description="Prints the top-k classes of each image with their probabilities.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument("images", nargs="+", help="image files, and folders of them")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to print (default 5)")
    add_label_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if options.top < 1:
        raise ValueError(f"--top must be at least 1, got {options.top}")
    loaded = load_model(options)
    loaded.require_classes("predict")
    names, described = loaded.class_names, loaded.transform.class_descriptions
    loaded.show_notes()
    images = image_files(options.images)
    logits, bad = compute(loaded, "logits", images)
    good = [path for index, path in enumerate(images) if index not in bad]
    answers = {}
    for path, row in zip(good, logits.astype(np.float64), strict=True):
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        best = np.argsort(-shares, kind="stable")[: options.top]
        answers[path] = [
            {"label": int(k), "name": names[k] if names else str(k), "probability": float(shares[k]),
             **({"description": described[k]} if described else {})} for k in best
        ]  # fmt: skip
    if options.json:
        notes = {"notes": loaded.notes} if loaded.notes else {}
        rows = [
            {"image": path, "error": bad[index]} if index in bad else {"image": path, "guesses": answers[path], **notes}
            for index, path in enumerate(images)
        ]
        print(json.dumps(rows, indent=1))
    else:
        for path in good:
            print(path)
            for guess in answers[path]:
                print(f"  {guess['probability']:7.2%}  {guess.get('description', guess['name'])}")
    if bad:
        explain_bad(bad, images, "predict")
    return 1 if bad else 0
