"""The options of the commands that run a model on images: the checkpoint, and how images are preprocessed."""

from __future__ import annotations

import argparse

from vit_flax.cli.options import CHECKPOINT, add_checkpoint_options, numbers
from vit_flax.preprocessing.evaluation import CROP_MODES, INTERPOLATIONS, PATCHES, Preprocessing

# fields of Preprocessing that are options
_FIELDS = ("mean", "std", "crop_pct", "interpolation", "crop_mode", "exif", "pixel_range", "max_num_patches")


def add_model_options(parser: argparse.ArgumentParser, batches: bool = True) -> None:
    """Adds the options of the checkpoint and its preprocessing, and with `batches` of the batch size."""
    parser.add_argument("checkpoint", help=CHECKPOINT)
    parser.set_defaults(batch_size=1)
    if batches:
        told = "images computed together (default 64)"
        parser.add_argument("--batch-size", type=int, default=64, metavar="N", help=told)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of matrix products (default float32)"
    )
    told = "(default: that of the files beside the checkpoint or of --config)"
    parser.add_argument("--mean", type=numbers, metavar="X,X,X", help=f"mean per channel, of pixels in 0..1 {told}")
    parser.add_argument("--std", type=numbers, metavar="X,X,X", help=f"standard deviation per channel {told}")
    parser.add_argument("--crop-pct", type=float, metavar="X", help="the centre crop's side over the resized image's")
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, help="how images are resized")
    parser.add_argument("--crop-mode", choices=CROP_MODES, help="squash: resize without regard to the aspect ratio")
    parser.add_argument(
        "--max-num-patches",
        type=int,
        metavar="N",
        help="most patches of an image, for NaFlex models (default: the checkpoint's)",
    )
    parser.add_argument(
        "--exif",
        action=argparse.BooleanOptionalAction,
        help="apply the EXIF orientation (default: as the weights' own library; transformers does)",
    )
    parser.add_argument(
        "--pixel-range", type=numbers, metavar="BLACK,WHITE", help="levels of images wider than 8 bits: 0,65535"
    )
    parser.add_argument(
        "--preprocessing", metavar="FILE", help="preprocessing.json or preprocessor_config.json to use instead"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_checkpoint_options(parser)


def add_label_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option of class names."""
    parser.add_argument("--labels", metavar="FILE", help="names of the model's classes, one a line")


def given_preprocessing(
    options: argparse.Namespace, value: Preprocessing, origin: str, image_size: tuple[int, int]
) -> tuple[Preprocessing, str]:
    """Returns the value with the options' changes, and its source."""
    given = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    if not given:
        return value, origin
    if value.crop_mode == PATCHES and given.keys() & {"crop_pct", "crop_mode"}:
        value = value.of_one_size(image_size)
    if "max_num_patches" in given and value.crop_mode != PATCHES:
        raise ValueError("--max-num-patches is of NaFlex models, whose images are cut into patches at any size")
    if given.keys() & {"crop_pct", "crop_mode"}:
        given["resize_size"] = None
    if "pixel_range" in given and len(given["pixel_range"]) != 2:
        raise ValueError("--pixel-range must be two numbers, black and white, such as 0,65535")
    channels = value.channels
    for name in given.keys() & {"mean", "std"}:
        if len(given[name]) == 1:
            given[name] *= channels
        if len(given[name]) != channels:
            raise ValueError(f"{name} has {len(given[name])} numbers, the model's images have {channels} channels")
    named = ", ".join(name for name in given if name != "resize_size")
    return value.replace(**given), f"{named} given; {origin}"
