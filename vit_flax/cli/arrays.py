"""The last steps of commands that write arrays of many images: the images' paths, and the report."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.cli.image_files import explain_bad, refuse_all_bad

if TYPE_CHECKING:
    from vit_flax.array_writer import ArrayWriter
    from vit_flax.cli.loading import Loaded


def append_paths(writer: ArrayWriter, images: list[str], bad: dict[int, str]) -> None:
    """Appends the paths of the readable images.

    Raises:
        ValueError: no image is readable.
    """
    refuse_all_bad(bad, images)
    writer.append({"images": np.asarray([path for index, path in enumerate(images) if index not in bad])})


def report_arrays(
    command: str, options: argparse.Namespace, writer: ArrayWriter, loaded: Loaded, images: list[str],
    bad: dict[int, str],
) -> int:  # fmt: skip
    """Prints the shapes of the written arrays and the unreadable images; returns the exit status."""
    shapes = {name: list(shape) for name, shape in writer.shapes.items() if name != "images"}
    if options.json:
        told: dict[str, Any] = {"file": options.output, "shapes": shapes, "notes": loaded.notes}
        told |= {"shape": shapes["features"]} if "features" in shapes else {}
        print(json.dumps({**told, "bad": {images[index]: reason for index, reason in bad.items()}}))
    else:
        listed = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes.items())
        print(f"wrote {options.output}: {listed}")
    if bad:
        explain_bad(bad, images, command)
    return 1 if bad else 0
