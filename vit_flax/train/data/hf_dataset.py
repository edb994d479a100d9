"""Hugging Face datasets on disk: a folder of `save_to_disk` (arrow), or one of parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.preprocessing.decode import BadImageError, Decoding, decode_image, match_channels
from vit_flax.train.config import DataConfig
from vit_flax.train.data.source import (
    SPLITS,
    DataError,
    Example,
    check_label,
    check_labels,
    check_split,
    require_folder,
    split_indices,
)

IMAGE_COLUMNS = ("image", "img", "pixel_values", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
SPELLINGS = {"train": ("train",), "val": ("validation", "valid", "val", "test"), "test": ("test", "validation", "val")}


class HFDataset:
    """Rows of a `datasets.Dataset`, whose tables are mapped from files and not held in memory."""

    decoding: Decoding | None = None  # what is followed of what files say besides pixels

    def __init__(
        self, name: str, folder: Path, rows: Any, kept: np.ndarray | None, columns: tuple[str, str],
        classes: list[str], channels: int,
    ) -> None:  # fmt: skip
        self.name, self.rows, self.kept, self.columns = name, rows, kept, columns
        self.class_names = tuple(classes)
        self.image_shape = (None, None, channels)
        self.folder = folder

    def __len__(self) -> int:
        return len(self.rows) if self.kept is None else len(self.kept)

    def __getitem__(self, index: int) -> Example:
        name = self.describe(index)
        row = self.rows[int(index if self.kept is None else self.kept[index])]
        image, label = (row[column] for column in self.columns)
        image = self._decode(image)
        return {"image": image, "label": check_label(label, len(self.class_names), name), "name": name}

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

    rows, whole = _read(datasets, folder, split)
    columns = (
        _column(folder, rows.column_names, "image_key", data.image_key, IMAGE_COLUMNS),
        _column(folder, rows.column_names, "label_key", data.label_key, LABEL_COLUMNS),
    )
    rows = rows.select_columns(list(columns))
    feature = rows.features[columns[0]]
    if isinstance(feature, datasets.Image):
        rows = rows.cast_column(columns[0], datasets.Image(decode=False))
    labels = rows.data.column(columns[1]).to_numpy() if rows._indices is None else np.asarray(rows[columns[1]])
    if labels.dtype.kind not in "iu":
        raise DataError(f"{folder}: column {columns[1]!r} must hold integers, got {rows.features[columns[1]]}")
    names = getattr(rows.features[columns[1]], "names", None)
    if not names:
        names = [str(label) for label in range(num_classes or int(labels.max(initial=0)) + 1)]
    name = f"hf_dataset {folder}/{split}"
    check_labels(labels, names, name, every_class=split == "train")
    kept = split_indices(labels, split, data.val_share) if whole else None
    return HFDataset(name, folder, rows, kept, columns, list(names), channels)


def _read(datasets: Any, folder: Path, split: str) -> tuple[Any, bool]:
    """Returns the rows of a split, and whether they are the whole of a dataset without splits."""
    quiet = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").is_file():
            found = json.loads((folder / "dataset_dict.json").read_text("utf-8")).get("splits", [])
            return datasets.load_from_disk(str(folder / _spelling(folder, split, found))), False
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder)), True
        files = sorted(folder.rglob("*.parquet"))
        if not files:
            raise DataError(f"{folder}: has neither a dataset of save_to_disk (state.json) nor .parquet files")
        parts: dict[str, list[str]] = {}
        for file in files:
            parts.setdefault(_split_of(file, folder), []).append(str(file))
        whole = set(parts) == {""}
        chosen = parts[""] if whole else parts[_spelling(folder, split, [part for part in parts if part])]
        return datasets.load_dataset("parquet", data_files={"part": chosen}, split="part"), whole
    except DataError:
        raise
    except Exception as error:  # the library's errors for damaged files have no common class
        raise DataError(f"{folder}: cannot be read as a dataset ({' '.join(str(error).split())[:200]})") from error
    finally:
        if quiet:
            datasets.enable_progress_bars()


def _split_of(file: Path, folder: Path) -> str:
    """Returns the split that a parquet file belongs to, told by its name or its folder's, as on the hub."""
    for part in (file.name, *reversed(file.relative_to(folder).parent.parts)):
        stem = part.split(".")[0].split("-")[0].lower()
        if stem in {name for names in SPELLINGS.values() for name in names}:
            return stem
    return ""


def _spelling(folder: Path, split: str, found: list[str]) -> str:
    for name in SPELLINGS[split]:
        if name in found:
            return name
    raise DataError(f"{folder}: has no split {split!r}, only {', '.join(map(repr, found)) or 'none'}")


def _column(folder: Path, columns: list[str], field: str, asked: str | None, usual: tuple[str, ...]) -> str:
    if asked is not None:
        if asked not in columns:
            raise DataError(f"{folder}: has no column {asked!r} ({field}), only {', '.join(map(repr, columns))}")
        return asked
    found = [name for name in usual if name in columns]
    if len(found) != 1:
        said = f"several could be it ({', '.join(found)})" if found else f"it has {', '.join(map(repr, columns))}"
        raise DataError(f"{folder}: which column is it? Set {field}: {said}")
    return found[0]
