"""A folder of JPEG, PNG and other files with one folder for each class."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from vit_flax.preprocessing.decode import SUFFIXES, Decoding, decode_image
from vit_flax.train.config import DataConfig
from vit_flax.train.data.checks import is_plain
from vit_flax.train.data.label_files import NAMES, find_label_file, read_label_file
from vit_flax.train.data.source import (
    SPLITS,
    DataError,
    Example,
    check_labels,
    check_split,
    match_splits,
    pick_split,
    require_folder,
    split_indices,
)

logger = logging.getLogger(__name__)

MULTI_LABEL = True  # reads several labels an image


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
        label = self.labels[index]
        return {"image": image, "label": label if label.ndim else int(label), "name": name}

    def check(self, index: int) -> None:
        """Reads the header of an image, and all of one whose header does not tell."""
        if not is_plain(self.root / self.describe(index)):
            self[index]

    def describe(self, index: int) -> str:
        """Returns the path of an image below the folder."""
        return str(self.files[index])


def find_splits(data: DataConfig) -> dict[str, str]:
    """Returns the names of the folders train/, val/ and test/, whichever there are."""
    return match_splits(_folders(require_folder("image_folder", data.path)))


def open_source(data: DataConfig, split: str, channels: int, num_classes: int | None) -> ImageFolder:
    """Opens train/, val/ (validation/, ...) or test/ of a folder, or its part of a folder without these.

    The classes are the folders' names in alphabetical order; of the training folder, where there is one. With
    `data.multi_label` a file of labels tells them: see label_files.

    Raises:
        DataError: no such folder, no class, a class without images, or one that training does not have.
    """
    folder, found = require_folder("image_folder", data.path), find_splits(data)
    check_split("image_folder", split, SPLITS)
    root = folder / pick_split(str(folder), split, found) if found else folder
    training = folder / found["train"] if "train" in found else root
    if data.multi_label:
        files, array, classes = _labelled(folder, root, training, data.label_key)
    else:
        files, array, classes = _by_folder(root, training)
    name = f"image_folder {root}"
    check_labels(array, classes, name, every_class=split == "train" or root is folder)
    if root is folder:
        groups = np.zeros(len(array), np.int64) if data.multi_label else array
        kept = split_indices(groups, split, data.val_share)
        files, array = [files[index] for index in kept], array[kept]
        name += f" ({'without' if split == 'train' else 'only'} the {data.val_share:.0%} held out)"
    return ImageFolder(name, root, files, array, classes, channels)


def _by_folder(root: Path, training: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """Returns files, labels and classes told by the folders that the images are in."""
    classes = _folders(training)
    unknown = sorted(set(_folders(root)) - set(classes))
    if unknown:
        raise DataError(f"{root}: class {unknown[0]!r} is not among the classes of {training}")
    if not classes:
        file = find_label_file(root)
        hint = f"; {file.name} is read with data.multi_label=True" if file else ""
        raise DataError(f"{root}: has no folders, and there must be one for each class{hint}")
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(_images(root, name)) if (root / name).is_dir() else []
        files += found
        labels += [label] * len(found)
    return files, np.asarray(labels, np.int64), classes


def _labelled(folder: Path, root: Path, training: Path, key: str | None) -> tuple[list[str], np.ndarray, list[str]]:
    """Returns files, labels (images, classes) and classes told by files of labels."""
    paths = [find_label_file(place) or find_label_file(folder) for place in (root, training)]
    if paths[0] is None or paths[1] is None:
        missing = root if paths[0] is None else training
        raise DataError(f"{missing}: has no file of labels ({', '.join(NAMES)}), which data.multi_label needs")
    told = read_label_file(paths[0], key)
    classes = told.classes if paths[1] == paths[0] else read_label_file(paths[1], key).classes
    there = set(_images(root, "."))
    below = f"{root.relative_to(folder).as_posix()}/"
    shared = paths[0].parent != root  # then it may name the images of other splits as well
    files, rows, lost = [], [], []
    for row, name in enumerate(told.files):
        name = name.removeprefix("./")
        name = name.removeprefix(below) if shared else name
        known = next((file for file in (name, *(name + suffix for suffix in SUFFIXES)) if file in there), None)
        if known is not None:
            files.append(known)
            rows.append(row)
        elif not shared or not _is_elsewhere(folder, told.files[row]):
            lost.append(name)
    if lost:
        raise DataError(f"{told.path}: {len(lost)} of {len(told.files)} files are not there, the first is {lost[0]!r}")
    if unnamed := len(there - set(files)):
        logger.warning("%s: %d images of %s are not named and left out", told.path, unnamed, root)
    return files, told.multi_hot(rows, classes), classes


def _is_elsewhere(folder: Path, name: str) -> bool:
    """Whether a file that a folder's own list of labels names belongs to another of its splits."""
    places = (folder, *(folder / split for split in match_splits(_folders(folder)).values()))
    return any((place / (name + suffix)).is_file() for place in places for suffix in ("", *SUFFIXES))


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, name: str) -> list[str]:
    """Returns the images below a class's folder, at any depth."""
    found = []
    for folder, _, files in os.walk(root / name):
        inside = os.path.relpath(folder, root)
        inside = "" if inside == "." else f"{inside}/"
        found += [f"{inside}{file}" for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")]
    return found
