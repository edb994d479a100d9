"""`vit-flax export`: a checkpoint as an ONNX or StableHLO program."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vit_flax.cli.image_options import add_label_option, add_model_options
from vit_flax.cli.loading import load_model
from vit_flax.cli.options import height_and_width, whole_numbers

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands

EXAMPLE = """example:
  vit-flax export vit.safetensors vit.onnx --config vit_tiny_patch16_224
  vit-flax export runs/digits/best digits.stablehlo --raw-size 32x32
  vit-flax export dinov2/ dinov2.onnx --output intermediates --layers 2,5,8,11 --norm

The input is `images` (batch, height, width, channels): preprocessed float32, or with --raw-size uint8 pixels that the
program preprocesses as `vit-flax predict` does. The program is compared with the model before it is written. Exit
status: 0 written; 2 unusable input, or a program that differs from the model."""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "export",
        help="write a model as an ONNX or StableHLO program",
        description="Writes a model as a program that runs without this library, on any number of images at once.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser, batches=False)
    parser.add_argument("target", help="file to write: .onnx, or .stablehlo for jax.export.deserialize")
    parser.add_argument(
        "--output", choices=("logits", "features", "intermediates"), default="logits",
        help="what the program returns (default logits; embeddings, where the model has no classes)",
    )  # fmt: skip
    parser.add_argument(
        "--layers",
        type=whole_numbers,
        default=(),
        metavar="N,N",
        help="blocks of --output intermediates (default: all)",
    )
    parser.add_argument("--norm", action="store_true", help="apply the final norm to --output intermediates")
    parser.add_argument(
        "--raw-size",
        type=height_and_width,
        metavar="HxW",
        help="take uint8 images of this size and preprocess them in the program",
    )
    add_label_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from vit_flax.export.exporting import check_target, export_model

    check_target(Path(options.target))
    dtype, options.dtype = options.dtype, "float32"  # the comparison is with the float32 model, whatever is exported
    loaded = load_model(options)
    loaded.show_notes()
    predictor = loaded.predictor
    done = export_model(
        options.target, predictor.model, predictor.params, options.output, layers=options.layers, norm=options.norm,
        preprocessing=loaded.transform, raw_size=options.raw_size, dtype=dtype,
    )  # fmt: skip
    height, width = options.raw_size or predictor.model.config.image_size
    if options.json:
        outputs = {
            name: {"error": found.error, "allowed": found.allowed, "norm": found.size}
            for name, found in zip(done.names, done.comparisons, strict=True)
        }
        found = {"files": [str(file) for file in done.files], "outputs": outputs, "dtype": dtype}
        shape = ["batch", height, width, predictor.model.config.in_chans]
        print(json.dumps({**found, "input": shape, "notes": loaded.notes}, indent=1))
        return 0
    kind = "uint8" if options.raw_size else "float32"
    for name, found in zip(done.names, done.comparisons, strict=True):
        print(f"{name}: {found}")
    print(f"wrote {' and '.join(map(str, done.files[::-1]))}: images (batch, {height}, {width}, "
          f"{predictor.model.config.in_chans}) of {kind} to {', '.join(done.names)}")  # fmt: skip
    return 0
