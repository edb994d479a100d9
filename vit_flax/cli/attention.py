"""`vit-flax attention`: a picture of what the class token draws from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.cli.images import add_model_options, load_model
from vit_flax.preprocessing.decode import BadImageError, import_pillow

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands

SIDE = 448  # pixels of the picture's height, at least
EXAMPLE = """example:
  vit-flax attention vit.safetensors --config vit_tiny_patch16_224 photo.jpg -o attention.png"""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "attention",
        help="draw what the class token looks at",
        description="Writes the image as the model sees it, and beside it the patches in the light of the attention "
        "that reaches the class token through all blocks (rollout).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument("image", help="image file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="picture to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from vit_flax.inference import attention_rollout

    target = Path(options.output)
    if not target.absolute().parent.is_dir():
        raise ValueError(f"{target}: its folder does not exist")
    loaded = load_model(options)
    transform, predictor = loaded.transform, loaded.predictor
    try:
        image = transform.crop(options.image)
    except BadImageError as error:
        raise ValueError(f"{options.image}: {error}") from error
    loaded.show_notes()
    prepared = transform(options.image)[None]
    shares = attention_rollout(predictor.model, predictor.params, prepared)[0]
    draw(image, shares).save(target)
    if options.json:
        print(json.dumps({"file": str(target), "attention": shares.tolist()}))
    else:
        print(f"wrote {target}")
    return 0


def draw(image: np.ndarray, shares: np.ndarray) -> Any:
    """Returns the image and, beside it, the image darkened where little attention falls."""
    module = import_pillow()
    zoom = max(1, -(-SIDE // image.shape[0]))
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    colours = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    left = module.fromarray(colours).resize(size, module.Resampling.NEAREST)
    light = module.fromarray(np.round(255 * shares / shares.max()).astype(np.uint8))
    light = light.resize(size, module.Resampling.BILINEAR)
    picture = module.new("RGB", (2 * size[0], size[1]))
    picture.paste(left, (0, 0))
    picture.paste(left, (size[0], 0), light)
    return picture
