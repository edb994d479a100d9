"""`vit-flax attention`: attention maps of the class token as an image, or the weights as arrays."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.array_writer import ArrayWriter
from vit_flax.cli.arrays import append_paths, report_arrays
from vit_flax.cli.image_files import counted, image_files
from vit_flax.cli.image_options import add_model_options
from vit_flax.cli.loading import load_model
from vit_flax.cli.progress import Progress
from vit_flax.preprocessing.decode import BadImageError, import_pillow
from vit_flax.preprocessing.naflex import to_patches

if TYPE_CHECKING:
    from PIL import Image

    from vit_flax.cli.parser import Commands
    from vit_flax.config import ViTConfig

SIDE = 448  # least height of the picture in pixels
BAR = 96  # pixels of the colour bar's width
MARGIN = 24
NUM_PARALLEL = 2  # attention layers of a parallel_things block
MOST = 1 << 27  # bytes of attention weights computed together; a few such batches are under way
COLOURS = ((0, 0, 10), (85, 15, 110), (185, 55, 85), (250, 140, 10), (252, 255, 165))  # equal steps of lightness
EXAMPLE = """example:
  vit-flax attention vit.safetensors --config vit_tiny_patch16_224 photo.jpg -o attention.png
  vit-flax attention vit.safetensors --config vit_tiny_patch16_224 photo.jpg -o last.png --layer -1 --head 0
  vit-flax attention vit.safetensors --config vit_tiny_patch16_224 photo.jpg -o maps.npz
  vit-flax attention vit.safetensors --config vit_tiny_patch16_224 photos/ --layer -1 -o maps"""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "attention",
        help="draw attention maps of the class token",
        description="Writes the preprocessed image, and beside it a heat map of the class token's attention to each "
        "patch: attention rollout through all blocks, with --layer the attention of that block, with --head that of "
        "one of its heads. A model without a class token has the mean over the queries of all patches. A .npz file "
        "gets the attention weights (heads, queries, keys) of each block as 'layer_0' and so on, prefix tokens first. "
        "For several images, or with a new folder for .npy files, images are the first axis and 'images' has their "
        "paths; rows are written as they are computed.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument("images", nargs="+", help="image file; for attention weights also several, and folders of them")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="picture, .npz file or folder to write")
    parser.add_argument("--layer", type=int, metavar="N", help="block, from 0, or negative from the end (default: all)")
    parser.add_argument("--head", type=int, metavar="N", help="head of that block, from 0 (default: mean of all)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    target = Path(options.output)
    if options.head is not None and options.layer is None:
        raise ValueError("--head N applies to one block: say which with --layer N (-1 is the last)")
    several = len(options.images) > 1 or Path(options.images[0]).is_dir()
    if target.suffix == "" or (several and target.suffix == ".npz"):
        return _write_weights(options, ArrayWriter(target))
    if several:
        raise ValueError(f"{target}: shows one image; for more, -o FILE.npz or a new folder gets the weights")
    return _show_one(options, target)


def _write_weights(options: argparse.Namespace, writer: ArrayWriter) -> int:
    """Writes the attention weights of any number of images, batch by batch."""
    from vit_flax.attention_weights import AttentionMaps
    from vit_flax.inference import Predictor

    images = image_files(options.images)
    loaded = load_model(options)
    given, config = loaded.predictor, loaded.predictor.model.config
    _check_numbers(options, config)
    loaded.show_notes()
    size = max(1, min(options.batch_size, MOST // _num_bytes(config, options.layer)))
    predictor = Predictor(given.model, given.params, size, transform=loaded.transform, resample=given.resample)
    bad: dict[int, str] = {}
    with Progress(len(images)) as progress, writer:
        predictor.write(writer, AttentionMaps(_layers(options), options.head), counted(images, progress), bad)
        append_paths(writer, images, bad)
    return report_arrays("attention", options, writer, loaded, images, bad)


def _num_bytes(config: ViTConfig, layer: int | None) -> int:
    """Returns the bytes of one image's attention weights in float32, of one block or of all."""
    blocks = range(config.depth) if layer is None else [layer % config.depth]
    tokens = [math.prod(config.grid_before(block)) + config.num_prefix_tokens for block in blocks]
    return 4 * sum(n**2 * _num_heads(config, block) for n, block in zip(tokens, blocks, strict=True))


def _num_heads(config: ViTConfig, block: int) -> int:
    return config.position.heads(config, block) * (NUM_PARALLEL if config.block == "parallel_things" else 1)


def _layers(options: argparse.Namespace) -> tuple[int, ...] | None:
    return None if options.layer is None else (options.layer,)


def _heads(options: argparse.Namespace) -> slice:
    return slice(None) if options.head is None else slice(options.head, options.head + 1 or None)


def _show_one(options: argparse.Namespace, target: Path) -> int:
    """Writes the attention map of one image, or its attention weights."""
    from vit_flax.attention_weights import attention_maps

    if not target.absolute().parent.is_dir():
        raise ValueError(f"{target}: its folder does not exist")
    if target.suffix != ".npz" and target.suffix.lower() not in import_pillow().registered_extensions():
        raise ValueError(f"{target}: unknown suffix; use .png or .jpg for a picture, .npz for the weights")
    loaded = load_model(options)
    transform, predictor = loaded.transform, loaded.predictor
    _check_numbers(options, predictor.model.config)
    (file,) = options.images
    try:
        image = transform.crop(file)
    except BadImageError as error:
        raise ValueError(f"{file}: {error}") from error
    loaded.show_notes()
    prepared: Any = transform(file)[None]
    if transform.patch_size is not None:
        prepared = to_patches(list(prepared), transform.patch_size, None)
    told: dict[str, Any] = {"file": str(target), "layer": options.layer, "head": options.head}
    if target.suffix == ".npz":
        maps = attention_maps(predictor.model, predictor.params, prepared, _layers(options))
        arrays = {f"layer_{number}": weights[0, _heads(options)] for number, weights in maps.items()}
        np.savez(target, **arrays)  # pyright: ignore[reportArgumentType]
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        if options.json:
            print(json.dumps({**told, "shapes": shapes, "notes": loaded.notes}))
        else:
            first = " x ".join(map(str, next(iter(shapes.values()))))
            print(f"wrote {target}: the weights of {len(arrays)} blocks, {first} (heads, queries, keys) each")
        return 0
    shares = _shares(options, predictor, prepared)
    draw(image, shares).save(target)
    told |= {"smallest": float(shares.min()), "largest": float(shares.max())}
    if options.json:
        print(json.dumps({**told, "attention": shares.tolist(), "notes": loaded.notes}))
    else:
        print(f"wrote {target}: a patch has {told['smallest']:.2%} to {told['largest']:.2%} of the attention")
    return 0


def _check_numbers(options: argparse.Namespace, config: ViTConfig) -> None:
    """Raises ValueError where there is no such block or head."""
    heads = _num_heads(config, (options.layer or 0) % config.depth)
    for name, value, count in (("layer", options.layer, config.depth), ("head", options.head, heads)):
        if value is not None and not -count <= value < count:
            raise ValueError(
                f"no --{name} {value}: the model has {count}, numbered 0 to {count - 1}, or -1 to -{count} from the end"
            )


def _shares(options: argparse.Namespace, predictor: Any, prepared: Any) -> np.ndarray:
    """Returns the attention to each patch, (rows, columns), normalised to sum 1.

    Raises:
        ValueError: attention is differential, whose weights may be negative.
    """
    from vit_flax.attention_weights import attention_maps, attention_rollout

    model, config = predictor.model, predictor.model.config
    if config.block.startswith("diff"):
        raise ValueError(
            f"block={config.block!r} has differential attention, whose weights may be negative and are not drawn: "
            "-o FILE.npz writes the weights"
        )
    if options.layer is None:
        return attention_rollout(model, predictor.params, prepared)[0]
    (weights,) = attention_maps(model, predictor.params, prepared, [options.layer]).values()
    weights = weights[0].mean(0) if options.head is None else weights[0, options.head]
    first = config.num_prefix_tokens
    patches = weights[0, first:] if config.class_token else weights[first:, first:].mean(0)
    own = config.grid_before(options.layer % config.depth)
    grid = tuple(prepared[2][0]) if isinstance(prepared, tuple) else own
    return (patches / patches.sum()).reshape(grid)


def draw(image: np.ndarray, shares: np.ndarray) -> Image.Image:
    """Returns the image and, beside it, the grey image under a heat map of its attention, (rows, columns) of sum 1.

    The colour bar gives the smallest and the largest value as multiples of uniform attention.
    """
    from PIL import ImageDraw

    module = import_pillow()
    zoom = max(1, -(-SIDE // image.shape[0]))
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    colours = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    left = module.fromarray(colours).resize(size, module.Resampling.NEAREST)
    low, high = float(shares.min()), float(shares.max())
    scaled = (shares - low) / (high - low) if high > low else np.zeros_like(shares)
    heat = module.fromarray(np.round(255 * scaled).astype(np.uint8)).resize(size, module.Resampling.BILINEAR)
    right = module.blend(left.convert("L").convert("RGB"), module.fromarray(_coloured(np.asarray(heat))), 0.6)
    picture = module.new("RGB", (2 * size[0] + BAR, size[1]), "white")
    picture.paste(left, (0, 0))
    picture.paste(right, (size[0], 0))
    ramp = np.repeat(np.linspace(255, 0, size[1] - 2 * MARGIN)[:, None], BAR // 4, 1).astype(np.uint8)
    picture.paste(module.fromarray(_coloured(ramp)), (2 * size[0] + MARGIN // 2, MARGIN))
    pen = ImageDraw.Draw(picture)
    for value, height in ((high, MARGIN // 2), (low, size[1] - MARGIN // 2)):
        pen.text((2 * size[0] + MARGIN // 2, height), f"{value * shares.size:.3g} x even", "black", anchor="lm")
    return picture


def _coloured(values: np.ndarray) -> np.ndarray:
    """Maps uint8 values to RGB colours of increasing lightness."""
    places = np.linspace(0, 255, len(COLOURS))
    return np.stack([np.interp(values, places, channel) for channel in zip(*COLOURS, strict=True)], -1).astype(np.uint8)
