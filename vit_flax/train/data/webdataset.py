"""WebDataset: tar files whose members NAME.jpg and NAME.cls (or NAME.json) belong together.

With several labels an image, .cls or a key of .json (labels, tags, ...) has a list: see label_lists.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.preprocessing.decode import SUFFIXES, BadImageError, Decoding, decode_image
from vit_flax.train.config import DataConfig
from vit_flax.train.data.checks import is_plain
from vit_flax.train.data.label_lists import find_classes, multi_hot, numbered, split_cells
from vit_flax.train.data.source import (
    SPLITS,
    DataError,
    Example,
    check_label,
    check_labels,
    check_split,
    match_splits,
    pick_split,
    require_folder,
    split_indices,
)

LABEL_KEYS = ("label", "cls", "class")
LIST_KEYS = ("labels", "tags", "classes", *LABEL_KEYS)
MULTI_LABEL = True  # reads several labels an image


class WebDataset:
    """Images at known places of tar files, read without unpacking."""

    decoding: Decoding | None = None  # what is followed of what files say besides pixels

    def __init__(
        self, name: str, shards: list[Path], names: list[str], places: np.ndarray, labels: np.ndarray,
        classes: list[str], channels: int,
    ) -> None:  # fmt: skip
        self.name, self.shards = name, [str(shard) for shard in shards]
        self.names, self.places, self.labels = np.asarray(names), places, labels  # places: shard, offset, size
        self.class_names = tuple(classes)
        self.image_shape = (None, None, channels)
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _files={}, _lock=threading.Lock())  # a worker process opens the files itself

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        image = decode_image(self._read(index), self.image_shape[2], self.decoding)
        label = self.labels[index]
        return {"image": image, "label": label if label.ndim else int(label), "name": self.describe(index)}

    def check(self, index: int) -> None:
        """Reads the header of an image, and all of one whose header does not tell."""
        if not is_plain(self._read(index)):
            self[index]

    def _read(self, index: int) -> bytes:
        return self.read(*map(int, self.places[index]))

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Returns a part of a tar file; BadImageError where it is cut off."""
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        content = os.pread(self._files[shard], size, offset)  # threads need not agree on a position
        if len(content) != size:
            raise BadImageError("the tar file is cut off")
        return content

    def describe(self, index: int) -> str:
        """Returns the tar file and the name of an image in it."""
        return f"{self.shards[int(self.places[index, 0])]}:{self.names[index]}"


def find_splits(data: DataConfig) -> dict[str, str]:
    """Returns what the splits are called in the tar files' names and folders, whichever there are."""
    folder = require_folder("webdataset", data.path)
    return splits_of(folder, tar_files(folder))[0]


def open_source(data: DataConfig, split: str, channels: int, num_classes: int | None) -> WebDataset:
    """Opens the tar files of a split: SPLIT/*.tar, or *SPLIT*.tar, or all of them divided by `val_share`.

    The members' headers are read once, which takes some seconds for a million images. Class names are the lines of
    classes.txt (or classnames.txt) where the folder has it.

    Raises:
        DataError: no such files, a damaged one, or a sample without an image or a label.
    """
    check_split("webdataset", split, SPLITS)
    folder = require_folder("webdataset", data.path)
    shards = tar_files(folder)
    found, words = splits_of(folder, shards)
    whole = not found
    called = split if whole else pick_split(str(folder), split, found)
    title = f"webdataset {folder}/{called}"
    keys = (data.label_key,) if data.label_key else LIST_KEYS if data.multi_label else LABEL_KEYS

    def samples_of(part: str) -> list[Sample]:
        return [sample for number, shard in enumerate(shards) if whole or part in words[shard]
                for sample in index_shard(shard, number, keys)]  # fmt: skip

    samples = samples_of(called)
    if data.multi_label:
        training = found.get("train", called)  # which tells the classes: another split may not have all of them
        told = samples if training == called else samples_of(training)
        array, classes = _several(title, samples, told, _classes(folder), num_classes)
    else:
        array = np.asarray([check_label(_number(s.label), 1 << 31, s.where) for s in samples], np.int64)
        classes = _classes(folder) or numbered(num_classes or int(array.max(initial=0)) + 1)
    check_labels(array, classes, title, every_class=split == "train")
    groups = np.zeros(len(array), np.int64) if data.multi_label else array
    kept = split_indices(groups, split, data.val_share) if whole else np.arange(len(array))
    chosen = [samples[index] for index in kept]
    places = np.asarray([sample.place for sample in chosen])
    return WebDataset(title, shards, [s.name for s in chosen], places, array[kept], classes, channels)


def tar_files(folder: Path) -> list[Path]:
    """Returns the tar files in a folder, or DataError."""
    found = sorted(folder.rglob("*.tar"))
    if not found:
        hint = "; compressed ones cannot be read at random: unpack them" if any(folder.rglob("*.tar.*")) else ""
        raise DataError(f"{folder}: has no .tar files{hint}")
    return found


def splits_of(folder: Path, shards: list[Path]) -> tuple[dict[str, str], dict[Path, set[str]]]:
    """Returns what the splits are called, and the words of every file's name and folders."""
    words = {shard: set(re.findall("[a-z]+", str(shard.relative_to(folder)).lower())) for shard in shards}
    return match_splits(set().union(*words.values())), words


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image of a tar file."""

    name: str
    place: tuple[int, int, int]  # the number of the tar file, offset and size
    label: object  # the text of .cls, or what a key of .json holds
    where: str  # what messages call it


def index_shard(shard: Path, number: int, keys: Sequence[str]) -> list[Sample]:
    """Returns every image of a tar file, with its label under one of `keys`.

    Raises:
        DataError: the file is damaged, or a sample has no image, several, or no label; the sample is named.
    """
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    found = []
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if stem:
                    samples.setdefault(f"{folder}/{stem}" if folder else stem, {})[suffix.lower()] = member
            for name, members in samples.items():
                images = [suffix for suffix in members if f".{suffix}" in SUFFIXES]
                if len(images) != 1:
                    said = "no image" if not images else f"several images ({', '.join(images)})"
                    raise DataError(f"{shard}:{name}: has {said}")
                image, where = members[images[0]], f"{shard}:{name}"
                label = _label(archive, members, where, keys)
                found.append(Sample(name, (number, image.offset_data, image.size), label, where))
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard}: not a whole, uncompressed tar file ({error})") from error
    return found


def _label(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str, keys: Sequence[str]) -> Any:
    def read(suffix: str) -> bytes:
        file = archive.extractfile(members[suffix])
        return file.read() if file else b""

    if "cls" in members and "cls" in keys:
        return read("cls").strip().decode("utf-8", "replace")
    if "json" in members:
        try:
            content = json.loads(read("json"))
        except ValueError as error:
            raise DataError(f"{name}.json: not JSON ({error})") from error
        key = next((key for key in keys if key in content), None) if isinstance(content, dict) else None
        if key is not None and content[key] is not None:
            return content[key]
    raise DataError(f"{name}: has no label (.cls, or {' or '.join(map(repr, keys))} in .json)")


def _number(label: Any) -> Any:
    """Returns a text of digits as the number that it is."""
    return int(label) if isinstance(label, str) and label.isdecimal() and len(label) < 19 else label


def _several(
    title: str, samples: list[Sample], training: list[Sample], names: list[str] | None, num_classes: int | None
) -> tuple[np.ndarray, list[str]]:
    """Returns (images, classes) of 0 and 1, and the classes' names."""

    def lists(of: list[Sample]) -> list[list[Any]]:
        found = split_cells([sample.label for sample in of], lambda position: of[position].where)
        texts = [value for row in found for value in row if isinstance(value, str)]
        numbers = bool(texts) and all(isinstance(_number(text), int) for text in texts)
        return [[_number(value) for value in row] if numbers else row for row in found]

    is_hot, classes = find_classes(title, lists(training), names, num_classes)
    return multi_hot(title, lists(samples), is_hot, classes), classes


def _classes(folder: Path) -> list[str] | None:
    for name in ("classes.txt", "classnames.txt"):
        if (folder / name).is_file():
            return (folder / name).read_text("utf-8").splitlines()
    return None
