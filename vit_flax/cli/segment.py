"""`vit-flax segment`: trains a linear segmentation head on a folder of images and masks."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.cli.image_options import add_model_options
from vit_flax.cli.loading import load_model
from vit_flax.cli.options import whole_numbers

if TYPE_CHECKING:
    from PIL import Image

    from vit_flax.cli.parser import Commands

SHOWN, SIDE = 6, 160  # example images, and the height of each in pixels
SHAPES = "shapes"  # the synthetic data
DRAWN = {"train": 200, "val": 50}
EXAMPLE = """example:
  vit-flax segment hf://facebook/dinov2-small rooms/ -o heads/rooms
  vit-flax segment vit.safetensors --config vit_tiny_patch16_224 shapes -o heads/shapes --epochs 10"""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "segment",
        help="train a linear segmentation head on frozen features",
        description="Trains a linear layer on the frozen tokens of a model (DINOv2's evaluation: batch norm, then a "
        "linear layer a patch, logits resized bilinearly) and writes a folder: head.safetensors under DINOv2's names, "
        "results.json with the IoU of each class at the masks' own sizes, predictions.png. The data are "
        "FOLDER/train/images/NAME.jpg with FOLDER/train/masks/NAME.png, one channel of class numbers (255: ignored), "
        "the same in FOLDER/val, and optionally FOLDER/classes.txt with a class name a line; `shapes` draws some.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument("data", metavar="FOLDER", help="images and masks, or the word shapes")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="epochs of training (default 20)")
    parser.add_argument("--learning-rate", type=float, default=1e-2, metavar="X", help="initial one (default 0.01)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the head and the images' order")
    parser.add_argument(
        "--layers",
        type=whole_numbers,
        default=(-1,),
        metavar="N,N",
        help="blocks whose tokens are joined (default: last)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from vit_flax.convert import write_checkpoint
    from vit_flax.inference import Predictor
    from vit_flax.models.intermediates import taken_blocks
    from vit_flax.train.data.drawn_shapes import write_shapes
    from vit_flax.train.data.mask_folder import MaskFolder
    from vit_flax.train.segmentation import (
        SegmentationConfig,
        evaluate_head,
        frozen_grids,
        head_tensors,
        labels_of,
        segment,
        train_head,
    )

    target = Path(options.output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target}: is there already; take another folder")
    config = SegmentationConfig(
        epochs=options.epochs, learning_rate=options.learning_rate, seed=options.seed, layers=options.layers
    )
    source = Path(options.data)
    is_drawn = options.data == SHAPES and not source.exists()
    if is_drawn:
        source = target / SHAPES
    else:
        MaskFolder.open(source, "train")  # before the model: a mistake is reported at once
    loaded = load_model(options)
    taken_blocks(config.layers, loaded.predictor.model.config.depth)
    loaded.show_notes()
    if is_drawn:  # after every check, since a next run refuses an existing folder
        write_shapes(source, DRAWN, seed=options.seed)
    train, val = (MaskFolder.open(source, split) for split in ("train", "val"))
    count = max(train.count_classes(), val.count_classes())
    # a mask covers the whole image, as it is stored
    inner = loaded.predictor
    transform = loaded.transform.of_one_size(inner.model.config.image_size, "squash").replace(crop_pct=1.0, exif=False)
    predictor = Predictor(inner.model, inner.params, inner.batch_size, transform=transform)
    began = time.monotonic()
    grids, held = (frozen_grids(predictor, split, config.layers) for split in (train, val))
    size = inner.model.config.image_size

    def after_epoch(epoch: int, loss: float, variables: Any) -> None:
        del variables
        if not options.json:
            print(f"epoch {epoch} of {config.epochs}: loss {loss:.4f}")

    head, variables = train_head(grids, labels_of(train, size), count, config, after_epoch)
    scores = evaluate_head(head, variables, held, val)
    names = train.class_names or tuple(map(str, range(count)))
    results = {
        "mean_iou": scores.mean_iou,
        "pixel_accuracy": scores.accuracy,
        "iou": {name: None if np.isnan(value) else float(value) for name, value in zip(names, scores.iou, strict=True)},
        "images": {"train": len(train.pairs), "val": len(val.pairs)},
        "epochs": config.epochs,
        "seconds": round(time.monotonic() - began, 1),
    }
    target.mkdir(parents=True, exist_ok=True)
    origin = {"layers": list(config.layers), "class_names": list(names), "backbone": loaded.reading.checkpoint.source}
    write_checkpoint(target / "head.safetensors", head_tensors(variables), origin)
    (target / "results.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    rows = []
    for number, grid in enumerate(held[:SHOWN]):
        mask = val.mask(number)
        found = segment(head, variables, grid, (mask.shape[0], mask.shape[1]))
        rows.append((transform.crop(val.pairs[number][0]), mask, found))
    draw(rows).save(target / "predictions.png")
    if options.json:
        print(json.dumps({"folder": str(target), **results, "notes": loaded.notes}))
    else:
        said = f"mean IoU {scores.mean_iou:.2%}, pixel accuracy {scores.accuracy:.2%}"
        print(f"wrote {target}: {said} of {len(held)} images")
    return 0


def draw(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Image.Image:
    """Returns an image grid with a row for each example: image, mask, prediction."""
    from vit_flax.preprocessing.decode import import_pillow

    module = import_pillow()
    picture = module.new("RGB", (3 * SIDE, SIDE * len(rows)), "white")
    for row, (image, *masks) in enumerate(rows):
        shown = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
        parts = [shown, *(_colours()[mask] for mask in masks)]
        for column, part in enumerate(parts):
            method = module.Resampling.BILINEAR if column == 0 else module.Resampling.NEAREST
            small = module.fromarray(part).resize((SIDE, SIDE), method)
            picture.paste(small, (column * SIDE, row * SIDE))
    return picture


def _colours() -> np.ndarray:
    """Returns a palette of 256 colours: black, then well separated hues; 255 is white."""
    hues = (np.arange(256) * 0.618) % 1 * 6
    wheel = np.clip(np.abs((hues[:, None] + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    colours = np.round(60 + 195 * wheel).astype(np.uint8)
    colours[0], colours[255] = 0, 255
    return colours
