"""The images of a command: files and folders of them, and unreadable ones."""

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
    """Prints to stderr the unreadable images and the reasons."""
    print(f"vit-flax {command}: {len(bad)} of {len(names)} images cannot be read and are left out:", file=sys.stderr)
    for index, reason in sorted(bad.items()):
        print(f"  {names[index]}: {reason}", file=sys.stderr)


def compute(loaded: Loaded, method: str, images: list[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Returns the results of a predictor's method for the readable images, and the reasons of the others by index.

    Raises:
        ValueError: no image can be read.
    """
    bad: dict[int, str] = {}
    with Progress(len(images)) as progress:
        found = loaded.predictor.collect(method, counted(images, progress), bad)
    refuse_all_bad(bad, images)
    return found, bad


def refuse_all_bad(bad: dict[int, str], images: list[str]) -> None:
    """Raises ValueError with the reasons where no image can be read."""
    if bad and len(bad) == len(images):
        shown = "; ".join(f"{images[index]}: {reason}" for index, reason in sorted(bad.items())[:3])
        raise ValueError(f"{shown}{f'; and {len(bad) - 3} more' if len(bad) > 3 else ''}")


def image_files(paths: list[str]) -> list[str]:
    """Returns the paths, folders replaced by their image files in the order of names.

    Raises:
        ValueError: a folder has no image files.
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
    """Yields images and advances the progress by one each."""
    for image in images:
        yield image
        progress.advance(1)
