"""`vit-flax depth`: monocular depth estimation, as an image or as arrays."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vit_flax.preprocessing.decode import BadImageError, import_pillow

if TYPE_CHECKING:
    from PIL import Image

    from vit_flax.cli.parser import Commands

EXAMPLE = """example:
  vit-flax depth hf://depth-anything/Depth-Anything-V2-Small-hf photo.jpg -o depth.png
  vit-flax depth depth-anything/ photo.jpg -o depth.npy"""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "depth",
        help="estimate the depth of every pixel of an image",
        description="Estimates the depth of every pixel with a Depth Anything model in transformers' format. The "
        "picture is grey, of the image's size, from black for the smallest depth to white for the largest: relative "
        "depth is larger where things are nearer, metric depth is in metres. A .npy file gets the depths themselves.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", help="folder of a Depth Anything model, or hf://owner/name")
    parser.add_argument("image", help="image file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="picture, or .npy file, to write")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from vit_flax.depth import estimate_depth, load_depth, read_depth_preprocessing

    target = Path(options.output)
    if not target.absolute().parent.is_dir():
        raise ValueError(f"{target}: its folder does not exist")
    if target.suffix.lower() not in (*PICTURES, ".npy"):
        raise ValueError(f"{target}: unknown suffix; use {', '.join(PICTURES)} for a picture, .npy for the depths")
    model, params = load_depth(options.checkpoint, float32=True)
    preprocessing, note = read_depth_preprocessing(options.checkpoint)
    if note:
        print(f"... {note}", file=sys.stderr)
    try:
        depth = estimate_depth(model, params, options.image, preprocessing)
    except BadImageError as error:
        raise ValueError(f"{options.image}: {error}") from error
    if target.suffix.lower() == ".npy":
        np.save(target, depth)
    else:
        draw(depth).save(target)
    told = {"smallest": float(depth.min()), "largest": float(depth.max())}
    kind = model.config.depth_type
    if options.json:
        shape = {"height": depth.shape[0], "width": depth.shape[1]}
        print(json.dumps({"file": str(target), "depth_type": kind, **shape, **told, "notes": [note] * bool(note)}))
    else:
        unit = " m" if kind == "metric" else ", larger is nearer"
        print(f"wrote {target}: {kind} depth from {told['smallest']:.4g} to {told['largest']:.4g}{unit}")
    return 0


def draw(depth: np.ndarray) -> Image.Image:
    """Returns a grey image, min-max scaled."""
    low, high = float(depth.min()), float(depth.max())
    scaled = (depth - low) / (high - low) if high > low else np.zeros_like(depth)
    return import_pillow().fromarray(np.round(255 * scaled).astype(np.uint8))
