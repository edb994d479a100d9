"""A folder of JPEG, PNG and other files with one folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vit_flax.preprocessing.decode import SUFFIXES, Decoding, decode_image
from vit_flax.train.config import DataConfig
from vit_flax.train.data.source import (
    SPLITS,
    DataError,
    Example,
    check_labels,
    check_split,
    require_folder,
    split_indices,
)

FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test"), "test": ("test", "val")}


class ImageFolder:
    """The images of a folder, named by their path in it."""

    decoding: Decoding | None = None  # what is followed of what files say besides pixels

    def __init__(
        self, name: str, root: Path, files: list[str], labels: np.ndarray, classes: list[str], channels: int
    ) -> None:
        self.name, self.root, self.labels = name, root, labels
        self.files = np.asarray(files)  # one array costs a worker process less than a million strings
        self.class_names = tuple(classes)
        self.image_shape = (None, None, channels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        name = self.describe(index)
        image = decode_image(self.root / name, self.image_shape[2], self.decoding)
        return {"image": image, "label": int(self.labels[index]), "name": name}

    def describe(self, index: int) -> str:
        """Returns the path of an image below the folder."""
        return str(self.files[index])


def open_source(data: DataConfig, split: str, channels: int, num_classes: int | None) -> ImageFolder:
    """Opens train/ or val/ (test/) of a folder, or its part of a folder without these.

    The classes are the folders' names in alphabetical order; of the training folder, where there is one.

    Raises:
        DataError: no such folder, no class, a class without images, or one that training does not have.
    """
    check_split("image_folder", split, SPLITS)
    folder = require_folder("image_folder", data.path)
    parts = {part: _part(folder, part) for part in SPLITS}
    if parts["train"] is None and parts[split] is None:
        root, classes = folder, _folders(folder)
    elif (root := parts[split]) is None:
        raise DataError(f"{folder}: has {parts['train'].name}/ but no {split}/")  # pyright: ignore
    else:
        classes = _folders(parts["train"] or root)
        unknown = sorted(set(_folders(root)) - set(classes))
        if unknown:
            raise DataError(f"{root}: class {unknown[0]!r} is not among the classes of {parts['train']}")
    if not classes:
        raise DataError(f"{root}: has no folders, and there must be one for each class")
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(_images(root, name)) if (root / name).is_dir() else []
        files += found
        labels += [label] * len(found)
    name = f"image_folder {root}"
    array = np.asarray(labels, np.int64)
    check_labels(array, classes, name, every_class=split == "train" or root is folder)
    if root is folder:
        kept = split_indices(array, split, data.val_share)
        files, array = [files[index] for index in kept], array[kept]
    return ImageFolder(name, root, files, array, classes, channels)


def _part(folder: Path, split: str) -> Path | None:
    for name in FOLDERS[split]:
        if (folder / name).is_dir():
            return folder / name
    return None


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, name: str) -> list[str]:
    """Returns the images below a class's folder, at any depth."""
    found = []
    for folder, _, files in os.walk(root / name):
        inside = os.path.relpath(folder, root)
        found += [f"{inside}/{file}" for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")]
    return found
