"""The images that a command is given: files and folders of them, and those that cannot be read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from vit_flax.cli.progress import Progress
from vit_flax.preprocessing.decode import SUFFIXES

if TYPE_CHECKING:
    from vit_flax.cli.loading import Loaded

_T = TypeVar("_T")


def explain_bad(bad: dict[int, str], names: list[str], command: str) -> None:
    """Prints to stderr which files were left out, and why."""
    print(f"vit-flax {command}: {len(bad)} of {len(names)} images cannot be read and are left out:", file=sys.stderr)
    for index, reason in sorted(bad.items()):
        print(f"  {names[index]}: {reason}", file=sys.stderr)


def compute(loaded: Loaded, method: str, images: list[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Returns the results of a predictor's method for the images that can be read, and why the others cannot.

    Raises:
        ValueError: none can be read.
    """
    bad: dict[int, str] = {}
    with Progress(len(images)) as progress:
        found = loaded.predictor.collect(method, counted(images, progress), bad)
    refuse_all_bad(bad, images)
    return found, bad


def refuse_all_bad(bad: dict[int, str], images: list[str]) -> None:
    """Raises ValueError where none of the images can be read, saying why."""
    if bad and len(bad) == len(images):
        shown = "; ".join(f"{images[index]}: {reason}" for index, reason in sorted(bad.items())[:3])
        raise ValueError(f"{shown}{f'; and {len(bad) - 3} more' if len(bad) > 3 else ''}")


def image_files(paths: list[str]) -> list[str]:
    """Returns the paths with every folder's image files in its place, in the order of their names.

    Raises:
        ValueError: a folder has none.
    """
    found: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        walked = [(folder, files) for folder, _, files in os.walk(path, followlinks=True)]
        inside = [os.path.join(folder, name) for folder, files in walked for name in files
                  if name.lower().endswith(SUFFIXES) and not name.startswith(".")]  # fmt: skip
        if not inside:
            raise ValueError(f"{path}: has no image files ({' '.join(SUFFIXES)})")
        found += sorted(inside)
    return found


def counted(images: Sequence[_T], progress: Progress) -> Iterator[_T]:
    """Yields images, and counts them as they are asked for."""
    for image in images:
        yield image
        progress.advance(1)
