"""The protocol of a data source, and the checks that every source makes of its labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np

from vit_flax.preprocessing.decode import Decoding
from vit_flax.suggestions import suggest

SPLITS = ("train", "val", "test")
# what people call them, in folders' and files' names; the first that is there is taken
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev", "eval"),
    "test": ("test", "testing"),
}
SPLIT_SEED = 0  # of splits made here: a run's own seed does not move images between training and test


class DataError(ValueError):
    """Data that cannot be used; the message says which and what to do."""


class Example(TypedDict):
    """One image with its label."""

    image: np.ndarray  # (height, width, channels) of uint8
    label: int | np.ndarray  # with several labels an image: (classes,) of 0 and 1
    name: str  # tells a person which image it is


class Source(Protocol):
    """Images with random access; can be pickled into a worker process.

    Indexing raises BadImageError when the image cannot be read, and DataError when the label cannot be used.
    """

    name: str  # for messages
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]  # None: differs from image to image
    decoding: Decoding | None  # what is followed of what files say besides pixels

    @property
    def labels(self) -> np.ndarray:
        """All labels: (images,) of integers, or (images, classes) of 0 and 1."""
        ...

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Returns one image with its label."""
        ...

    def check(self, index: int) -> None:
        """Raises BadImageError where an image's header says that it cannot be read."""
        ...

    def describe(self, index: int) -> str:
        """Returns the name of an image without reading it."""
        ...


class ArraySource:
    """Images held in memory as one array."""

    decoding: Decoding | None = None  # nothing is decoded

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.name = name
        self.images, self.labels = images, labels
        self.class_names = tuple(class_names)
        self.image_shape: tuple[int | None, int | None, int] = (images.shape[1], images.shape[2], images.shape[3])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return {"image": self.images[index], "label": int(self.labels[index]), "name": self.describe(index)}

    def check(self, index: int) -> None:
        """Finds nothing: the images have been read."""

    def describe(self, index: int) -> str:
        """Returns the name of an image."""
        return f"{self.name}[{index}]"


def require_folder(source: str, path: str | None) -> Path:
    """Returns the folder of a source.

    Raises:
        DataError: none is given, or there is none.
    """
    if not path:
        raise DataError(f"source {source!r} needs a folder: {source}:PATH")
    folder = Path(path).expanduser()
    if not folder.exists():
        raise DataError(f"{path}: no such folder")
    if not folder.is_dir():
        raise DataError(f"{path}: is a file, source {source!r} needs a folder")
    return folder


def check_split(source: str, split: str, known: Sequence[str]) -> None:
    """Raises DataError unless the source has the split."""
    if split not in known:
        meant = next((name for name in known if split.lower() in SPELLINGS.get(name, ())), None)
        hint = f"; did you mean {meant!r}?" if meant else f"; {near}" if (near := suggest(split, known)) else ""
        raise DataError(f"{source} has no split {split!r}, only {' and '.join(known)}{hint}")


def match_splits(names: Iterable[str]) -> dict[str, str]:
    """Returns which of 'train', 'val' and 'test' there are, each with what it is called among the names."""
    lower = {name.lower(): name for name in sorted(names, reverse=True)}
    found = {split: next((lower[word] for word in words if word in lower), None) for split, words in SPELLINGS.items()}
    return {split: name for split, name in found.items() if name is not None}


def pick_split(source: str, split: str, found: Mapping[str, str], others: Iterable[str] = ()) -> str:
    """Returns what the split is called; where there is but one of 'val' and 'test', it answers to both.

    Raises:
        DataError: there is none; `others` are names that no split has.
    """
    check_split(source, split, SPLITS)
    for name in {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}[split]:
        if name in found:
            return found[name]
    there = ", ".join(map(repr, dict.fromkeys([*found.values(), *others]))) or "none"
    words = ", ".join(SPELLINGS[split][1:])
    raise DataError(f"{source}: has no split {split!r} (nor {words}), only {there}")


def check_label(label: object, num_classes: int, where: str) -> int:
    """Returns a label as an integer.

    Raises:
        DataError: it is not one, or out of range.
    """
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        hint = "; several labels an image are read with data.multi_label=True" if isinstance(label, list) else ""
        raise DataError(f"{where}: the label must be an integer, got {label!r}{hint}")
    if not 0 <= label < num_classes:
        raise DataError(f"{where}: label {label} is out of range, there are {num_classes} classes")
    return int(label)


def check_labels(labels: np.ndarray, class_names: Sequence[str], source: str, every_class: bool = True) -> None:
    """Raises DataError when a label is out of range or, where `every_class` must be there, one has no image."""
    if not len(labels):
        raise DataError(f"{source}: holds no images")
    if labels.ndim == 1:
        wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
        if len(wrong):
            check_label(int(labels[wrong[0]]), len(class_names), f"{source}[{wrong[0]}]")
    empty = np.flatnonzero(count_classes(labels, len(class_names)) == 0)
    if every_class and len(empty):
        names = ", ".join(repr(class_names[index]) for index in empty[:5])
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise DataError(f"{source}: no image of class {names}{more}")


def count_classes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns how many images have each class."""
    return labels.sum(0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)


def split_indices(labels: np.ndarray, split: str, share: float) -> np.ndarray:
    """Returns the indices of the training or the evaluation part of data that come in one piece.

    The same share of every class, at least one image, is for evaluation; 'val' and 'test' are the same images.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.random.default_rng([SPLIT_SEED, int(label)]).permutation(len(members))]
        held_out = min(max(1, round(share * len(members))), len(members) - 1)
        chosen.append(members[held_out:] if split == "train" else members[:held_out])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
