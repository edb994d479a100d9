"""`vit-flax depth`: monocular depth estimation, as an image or as arrays."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.cli.options import add_checkpoint_options, whole_numbers, wish_of
from vit_flax.preprocessing.decode import BadImageError, import_pillow

if TYPE_CHECKING:
    from PIL import Image

    from vit_flax.cli.parser import Commands

EXAMPLE = """example:
  vit-flax depth hf://depth-anything/Depth-Anything-V2-Small-hf photo.jpg -o depth.png
  vit-flax depth depth-anything/ photo.jpg -o depth.npy
  vit-flax depth hf://facebook/dinov2-small photo.jpg --head dinov2_vits14_nyu_linear_head.pth -o depth.png"""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "depth",
        help="estimate the depth of every pixel of an image",
        description="Estimates the depth of every pixel with a Depth Anything model in transformers' format, or with a "
        "DINOv2 backbone and one of its linear heads (--head; the image is taken at its own size). The "
        "picture is grey, of the image's size, from black for the smallest depth to white for the largest: relative "
        "depth is larger where things are nearer, metric depth is in metres. A .npy file gets the depths themselves.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", help="folder of a Depth Anything model or hf://owner/name; with --head weights of the backbone"
    )
    parser.add_argument("image", help="image file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="picture, or .npy file, to write")
    parser.add_argument("--head", metavar="FILE", help="linear depth head of DINOv2: decode_head.conv_depth")
    parser.add_argument(
        "--layers", type=whole_numbers, metavar="N,N", help="blocks that the head reads, from 0 (default: DINOv2's)"
    )
    parser.add_argument(
        "--max-depth",
        type=float,
        metavar="X",
        help="the head's farthest bin (default: as its file says; nyu 10, kitti 80)",
    )
    parser.add_argument(
        "--shorter-side",
        type=int,
        metavar="N",
        help="pixels of the image's shorter side for a linear head (default: its own)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_checkpoint_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from vit_flax.linear_depth import holds_linear_head

    target = Path(options.output)
    if not target.absolute().parent.is_dir():
        raise ValueError(f"{target}: its folder does not exist")
    if target.suffix.lower() not in (*PICTURES, ".npy"):
        raise ValueError(f"{target}: unknown suffix; use {', '.join(PICTURES)} for a picture, .npy for the depths")
    estimate = _linear if options.head is not None or holds_linear_head(options.checkpoint) else _depth_anything
    try:
        depth, kind, note = estimate(options)
    except BadImageError as error:
        raise ValueError(f"{options.image}: {error}") from error
    if note:
        print(f"... {note}", file=sys.stderr)
    if target.suffix.lower() == ".npy":
        np.save(target, depth)
    else:
        draw(depth).save(target)
    told = {"smallest": float(depth.min()), "largest": float(depth.max())}
    if options.json:
        shape = {"height": depth.shape[0], "width": depth.shape[1]}
        print(json.dumps({"file": str(target), "depth_type": kind, **shape, **told, "notes": [note] * bool(note)}))
    else:
        unit = " m" if kind == "metric" else ", larger is nearer"
        print(f"wrote {target}: {kind} depth from {told['smallest']:.4g} to {told['largest']:.4g}{unit}")
    return 0


def _depth_anything(options: argparse.Namespace) -> tuple[np.ndarray, str, str]:
    """Returns the depth, its kind, and the notes."""
    from vit_flax.depth import estimate_depth, load_depth, read_depth_preprocessing

    given = wish_of(options)
    asked = {name: getattr(options, name) for name in ("layers", "max_depth", "shorter_side")}
    asked |= {name: getattr(given, name) for name in ("layout", "entry", "resample", "source_grid", "overrides")}
    asked |= {"config": given.config if isinstance(given.config, str) else None}
    if named := next((name for name, value in asked.items() if value), None):
        raise ValueError(f"`{named}` applies to a backbone under a linear head: pass `head=FILE`, too")
    told: Any = given.config
    model, params = load_depth(options.checkpoint, told, float32=True)
    preprocessing, note = read_depth_preprocessing(options.checkpoint)
    return estimate_depth(model, params, options.image, preprocessing), model.config.depth_type, note


def _linear(options: argparse.Namespace) -> tuple[np.ndarray, str, str]:
    from vit_flax.linear_depth import estimate_linear_depth, load_linear_depth

    if options.shorter_side is not None and options.shorter_side < 1:
        raise ValueError(f"--shorter-side must be at least 1, got {options.shorter_side}")
    wish = dataclasses.replace(wish_of(options), float32=True)
    told = {"layers": options.layers, "max_depth": options.max_depth}
    model, params = load_linear_depth(options.checkpoint, options.head, wish=wish, **told)
    cfg = model.config
    note = f"a linear head on block{'s' * (len(cfg.layers) > 1)} {', '.join(map(str, cfg.layers))}: "
    note += f"{cfg.bins} bins from {cfg.min_depth:g} to {cfg.max_depth:g} m"
    return estimate_linear_depth(model, params, options.image, options.shorter_side), cfg.depth_type, note


def draw(depth: np.ndarray) -> Image.Image:
    """Returns a grey image, min-max scaled."""
    low, high = float(depth.min()), float(depth.max())
    scaled = (depth - low) / (high - low) if high > low else np.zeros_like(depth)
    return import_pillow().fromarray(np.round(255 * scaled).astype(np.uint8))
