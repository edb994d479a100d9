"""`vit-flax features`: features of image files, before the head."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vit_flax.array_writer import ArrayWriter
from vit_flax.cli.arrays import append_paths, report_arrays
from vit_flax.cli.image_files import counted, image_files
from vit_flax.cli.image_options import add_model_options
from vit_flax.cli.loading import is_projection, load_model
from vit_flax.cli.progress import Progress

if TYPE_CHECKING:
    from vit_flax.cli.loading import Loaded
    from vit_flax.cli.parser import Commands
    from vit_flax.models.intermediates import Intermediates
    from vit_flax.reading import Reading

EXAMPLE = """example:
  vit-flax features vit.safetensors --config vit_tiny_patch16_224 *.jpg -o features.npz
  vit-flax features vit.safetensors --config vit_tiny_patch16_224 --tokens *.jpg -o tokens.npz
  vit-flax features vit.safetensors --config vit_tiny_patch16_224 --layers 2,5,8,11 --grid photos/ -o grids

grids/layer_11.npy then holds (images, rows, columns, channels) of the last block, grids/images.npy the paths."""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "features",
        help="write image features, of the whole model or of any of its layers",
        description="Writes 'features', one row an image, and 'images', their paths, to a .npz file, or to a new "
        "folder of .npy files. With --layers, 'layer_2' and so on: the patch tokens after these blocks. For a NaFlex "
        "model 'spatial_shapes' has the rows and columns of each image; tokens beyond are padding. Rows are written "
        "as they are computed and need not fit in memory.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument("images", nargs="+", help="image files, and folders of them")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=".npz file or new folder to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--projected",
        action="store_true",
        help="the image embedding in the space of texts: CLIP's get_image_features, not normalised",
    )
    which.add_argument(
        "--tokens",
        action="store_true",
        help="all tokens after the final norm (default: the head's input)",
    )
    which.add_argument(
        "--layers",
        metavar="N,N",
        help="patch tokens after these blocks, from 0, or from the end --layers=-4,-1; 'last4': the last four; 'all'",
    )
    parser.add_argument("--grid", action="store_true", help="with --layers: rows and columns as two axes")
    parser.add_argument("--norm", action=argparse.BooleanOptionalAction, help="with --layers: apply the final norm")
    parser.add_argument(
        "--prefix-tokens", action="store_true", help="with --layers: class and register tokens too, 'layer_2_prefix'"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    writer = ArrayWriter(options.output)
    layers = None if options.layers is None else parse_layers(options.layers)
    if options.layers is None and (options.grid or options.norm is not None or options.prefix_tokens):
        raise ValueError("--grid, --norm and --prefix-tokens need blocks: say which with --layers 2,5,8,11")
    images = image_files(options.images)
    loaded = load_model(options)
    method: Any = "features" if options.tokens else "embeddings"
    if options.projected:
        method = _projected(loaded.reading)
    if options.layers is not None:
        method = _intermediates(layers, options, loaded)
    loaded.show_notes()
    bad: dict[int, str] = {}
    with Progress(len(images)) as progress, writer:
        loaded.predictor.write(writer, method, counted(images, progress), bad)
        append_paths(writer, images, bad)
    return report_arrays("features", options, writer, loaded, images, bad)


def parse_layers(text: str) -> int | tuple[int, ...] | None:
    """Parses --layers into the indices of `Intermediates`: the last N for 'lastN', None for 'all'.

    Raises:
        ValueError: the text is neither comma-separated integers nor 'lastN' or 'all'.
    """
    if text == "all":
        return None
    try:
        if text.startswith("last"):
            return int(text.removeprefix("last"))
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--layers {text}: numbers with commas between them (--layers 2,5,8,11), last4 or all"
        ) from None


def _intermediates(layers: int | tuple[int, ...] | None, options: argparse.Namespace, loaded: Loaded) -> Intermediates:
    """Returns the predictor's method for the options of --layers.

    Raises:
        ValueError: the model has no such block, or its images no single grid.
    """
    from vit_flax.models.intermediates import Intermediates, taken_blocks

    config = loaded.predictor.model.config
    try:
        taken_blocks(layers, config.depth)
    except ValueError as error:
        known = f"the model has {config.depth} blocks, numbered 0 to {config.depth - 1}"
        raise ValueError(f"--layers {options.layers}: {known}") from error
    if options.norm and (config.fc_norm or not config.final_norm):
        loaded.notes.append("the model has no norm between its blocks and its pooling: --norm changes nothing")
    if options.prefix_tokens and not config.num_prefix_tokens:
        loaded.notes.append("the model has no class or register tokens: --prefix-tokens adds nothing")
    if options.grid and loaded.transform.varies:
        raise ValueError(
            "--grid needs images of one size: leave it out, 'spatial_shapes' has each image's rows and columns"
        )
    output_fmt = "NHWC" if options.grid else "NLC"
    return Intermediates(layers, options.prefix_tokens, bool(options.norm), output_fmt)


def _projected(reading: Reading) -> str:
    """Returns the predictor's method of the embedding that image and text towers share.

    Raises:
        ValueError: the model has no projection into that space.
    """
    if is_projection(reading):
        return "logits"
    if reading.layout.name.startswith("huggingface_siglip") and reading.config.global_pool == "map":
        return "embeddings"  # SigLIP has no projection: its pooled output is the embedding
    raise ValueError(f"{reading.checkpoint.source}: has no projection into a space of texts: leave --projected out")
