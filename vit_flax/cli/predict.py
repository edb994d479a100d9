"""`vit-flax predict`: the likeliest classes of image files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.cli.images import add_model_options, load_model

EXAMPLE = """example:
  vit-flax predict runs/digits/best photo.png
  vit-flax predict vit.safetensors --config vit_tiny_patch16_224 --labels imagenet.txt *.jpg"""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "predict",
        help="classify image files",
        description="Prints the likeliest classes of each image with their probabilities.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to print (default 5)")
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one a line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if options.top < 1:
        raise ValueError(f"--top must be at least 1, got {options.top}")
    loaded = load_model(options)
    classes = loaded.predictor.model.config.num_classes
    if not classes:
        raise ValueError(f"{options.checkpoint}: has no head: use vit-flax features")
    names = loaded.class_names
    if options.labels:
        names = tuple(Path(options.labels).read_text("utf-8").splitlines())
    if names is not None and len(names) != classes:
        raise ValueError(f"{options.labels or options.checkpoint}: {len(names)} names for {classes} classes")
    print(f"... {loaded.origin}", file=sys.stderr)
    logits = loaded.predictor.logits(options.images).astype(np.float64)
    answers = []
    for path, row in zip(options.images, logits, strict=True):
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        best = np.argsort(-shares, kind="stable")[: options.top]
        guesses = [{"label": int(k), "name": names[k] if names else str(k), "probability": float(shares[k])}
                   for k in best]  # fmt: skip
        answers.append({"image": path, "guesses": guesses})
    if options.json:
        print(json.dumps(answers, indent=1))
        return 0
    for answer in answers:
        print(answer["image"])
        for guess in answer["guesses"]:
            print(f"  {guess['probability']:7.2%}  {guess['name']}")
    return 0
