"""Hugging Face datasets on disk: a folder of `save_to_disk` (arrow), or one of parquet files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from vit_flax.preprocessing.decode import BadImageError, Decoding, decode_image, match_channels
from vit_flax.train.config import DataConfig
from vit_flax.train.data.checks import is_plain
from vit_flax.train.data.label_lists import find_classes, multi_hot, numbered
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

IMAGE_COLUMNS = ("image", "img", "pixel_values", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
MULTI_LABEL = True  # reads several labels an image


class Rows(Protocol):
    """What is asked of a datasets.Dataset or a Parquet reader: its rows, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Table(Rows, Protocol):
    """What is asked of a datasets.Dataset, beside its rows."""

    column_names: list[str]
    features: Mapping[str, object]

    def cast_column(self, column: str, feature: object) -> Table:
        """Returns it with a column of another kind."""
        ...

    def select_columns(self, column_names: list[str]) -> Table:
        """Returns these columns."""
        ...


class HFDataset:
    """Rows of a `datasets.Dataset`, whose tables are mapped from files and not held in memory."""

    decoding: Decoding | None = None  # what is followed of what files say besides pixels

    def __init__(
        self, name: str, folder: Path, rows: Rows, kept: np.ndarray | None, image_column: str, labels: np.ndarray,
        classes: list[str], channels: int,
    ) -> None:  # fmt: skip
        self.name, self.rows, self.kept, self.column = name, rows, kept, image_column
        self.labels = labels
        self.class_names = tuple(classes)
        self.image_shape = (None, None, channels)
        self.folder = folder

    def __len__(self) -> int:
        return len(self.rows) if self.kept is None else len(self.kept)

    def __getitem__(self, index: int) -> Example:
        label = self.labels[index]
        image = self._decode(self._image(index))
        return {"image": image, "label": label if label.ndim else int(label), "name": self.describe(index)}

    def _image(self, index: int) -> Any:
        return self.rows[int(index if self.kept is None else self.kept[index])][self.column]

    def check(self, index: int) -> None:
        """Reads the header of an image, and all of one whose header does not tell."""
        image = self._image(index)
        encoded = image.get("bytes") if isinstance(image, dict) else image
        if not (isinstance(encoded, bytes) and is_plain(encoded)):
            self[index]

    def _decode(self, image: Any) -> np.ndarray:
        channels = self.image_shape[2]
        if isinstance(image, dict):  # the Image feature, not decoded
            if image.get("bytes") is not None:
                return decode_image(image["bytes"], channels, self.decoding)
            if image.get("path"):
                return decode_image(self.folder / image["path"], channels, self.decoding)
            raise BadImageError("has neither bytes nor a path")
        if isinstance(image, bytes):
            return decode_image(image, channels, self.decoding)
        if isinstance(image, str):
            return decode_image(self.folder / image, channels, self.decoding)
        if image is None:
            raise BadImageError("is empty")
        array = np.asarray(image)
        if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
            array = array.astype(np.uint8)  # arrow's lists come back as int64
        return match_channels(array, channels)

    def describe(self, index: int) -> str:
        """Returns the split and the row of an image."""
        return f"{self.name}[{int(index if self.kept is None else self.kept[index])}]"


def open_source(data: DataConfig, split: str, channels: int, num_classes: int | None) -> HFDataset:
    """Opens a split of a dataset on disk; one that has no splits is divided by `val_share`.

    Parquet files are rewritten once, into the library's own cache of arrow files, for random access.

    Raises:
        DataError: the folder holds no dataset or not that split, or the image or label column is not found.
        ImportError: the library `datasets` is not installed.
    """
    check_split("hf_dataset", split, SPLITS)
    folder = require_folder("hf_dataset", data.path)
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Hugging Face datasets need their library: pip install datasets") from error

    rows: Any
    rows, called = read_rows(datasets, folder, split)
    columns = (
        column_of(folder, rows.column_names, "image_key", data.image_key, IMAGE_COLUMNS),
        column_of(folder, rows.column_names, "label_key", data.label_key, LABEL_COLUMNS),
    )
    feature = rows.features[columns[0]]
    if isinstance(feature, datasets.Image):
        rows = rows.cast_column(columns[0], datasets.Image(decode=False))
    if data.multi_label:
        # training tells the classes: another split may not have all of them
        training: Any = rows if split == "train" or not called else read_rows(datasets, folder, "train")[0]
        told = getattr(getattr(training.features[columns[1]], "feature", None), "names", None)  # of a ClassLabel
        column = f"{folder}: column {columns[1]!r}"
        is_hot, names = (False, told) if told else find_classes(column, training[columns[1]], None, num_classes)
        labels = multi_hot(f"hf_dataset {folder}/{called or split}", rows[columns[1]], is_hot, names)
    else:
        labels, names = _integers(folder, rows, columns[1], num_classes)
    name = f"hf_dataset {folder}/{called or split}"
    check_labels(labels, names, name, every_class=split == "train")
    kept = None
    if not called:
        groups = np.zeros(len(labels), np.int64) if data.multi_label else labels
        kept = split_indices(groups, split, data.val_share)
        labels = labels[kept]
    return HFDataset(name, folder, rows.select_columns([columns[0]]), kept, columns[0], labels, list(names), channels)


def _integers(folder: Path, rows: Any, column: str, num_classes: int | None) -> tuple[np.ndarray, list[str]]:
    """Returns one label for each row, and the classes' names."""
    feature = rows.features[column]
    labels = rows.data.column(column).to_numpy() if rows._indices is None else np.asarray(rows[column])
    if labels.dtype.kind not in "iu":
        several = len(rows) and isinstance(rows[0][column], list)
        hint = "; of several labels an image: data.multi_label=True" if several else ""
        raise DataError(f"{folder}: column {column!r} must hold integers, got {feature}{hint}")
    return labels, getattr(feature, "names", None) or numbered(num_classes or int(labels.max(initial=0)) + 1)


def find_splits(data: DataConfig) -> dict[str, str]:
    """Returns what the splits of a dataset on disk are called, whichever there are."""
    folder = require_folder("hf_dataset", data.path)
    return match_splits(_parts(folder)) if not (folder / "state.json").is_file() else {}


def read_rows(datasets: ModuleType, folder: Path, split: str) -> tuple[Table, str]:
    """Returns the rows of a split and what it is called; '' for the whole of a dataset without splits."""
    quiet = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder)), ""
        parts = _parts(folder)
        called = "" if set(parts) == {""} else pick_split(str(folder), split, match_splits(parts), parts)
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder / called)), called
        return datasets.load_dataset("parquet", data_files={"part": parts[called]}, split="part"), called
    except DataError:
        raise
    except Exception as error:  # the library's errors for damaged files have no common class
        raise DataError(f"{folder}: cannot be read as a dataset ({' '.join(str(error).split())[:200]})") from error
    finally:
        if quiet:
            datasets.enable_progress_bars()


def _parts(folder: Path) -> dict[str, list[str]]:
    """Returns the names of a dataset's parts, with their parquet files; '' is the part without a name."""
    if (folder / "dataset_dict.json").is_file():
        try:
            found = json.loads((folder / "dataset_dict.json").read_text("utf-8")).get("splits", [])
        except (ValueError, AttributeError) as error:
            raise DataError(f"{folder}: cannot be read as a dataset (dataset_dict.json: {error})") from error
        return {str(name): [] for name in found}
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise DataError(f"{folder}: has neither a dataset of save_to_disk (state.json) nor .parquet files")
    parts: dict[str, list[str]] = {}
    for file in files:
        parts.setdefault(_split_of(file, folder), []).append(str(file))
    return parts


def _split_of(file: Path, folder: Path) -> str:
    """Returns the split that a parquet file belongs to, told by its name or its folder's, as on the hub."""
    for part in (file.name, *reversed(file.relative_to(folder).parent.parts)):
        stem = part.split(".")[0].split("-")[0]
        if match_splits([stem]):
            return stem
    return ""


def column_of(folder: Path, columns: list[str], field: str, asked: str | None, usual: tuple[str, ...]) -> str:
    """Returns the column that is asked for, or the only one with a usual name; DataError where that is not one."""
    if asked is not None:
        if asked not in columns:
            raise DataError(f"{folder}: has no column {asked!r} ({field}), only {', '.join(map(repr, columns))}")
        return asked
    found = [name for name in usual if name in columns]
    if len(found) != 1:
        said = f"several could be it ({', '.join(found)})" if found else f"it has {', '.join(map(repr, columns))}"
        raise DataError(f"{folder}: which column is it? Set {field}: {said}")
    return found[0]
