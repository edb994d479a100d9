"""Files that name the images of a folder and the classes that each has, any number of them.

labels.csv, labels.json and labels.jsonl are read, and metadata.csv and metadata.jsonl as Hugging Face's imagefolder has
them. In a table the classes stand in one column (`cat|dog`, also divided by ; , or spaces, or a JSON list), or each in
a column of its own that holds 0 or 1.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.train.data.label_lists import split_cells
from vit_flax.train.data.source import DataError

NAMES = ("labels.csv", "labels.json", "labels.jsonl", "metadata.csv", "metadata.jsonl")
FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_name", "path", "name", "image_id", "img", "id")
LABEL_COLUMNS = ("labels", "label", "tags", "classes", "class", "class_names")
_YES, _NO = {"1", "1.0", "true"}, {"0", "0.0", "false", ""}


@dataclasses.dataclass(frozen=True)
class LabelFile:
    """What a file of labels says."""

    path: Path
    files: list[str]
    labels: list[list[str]]  # of each file
    classes: list[str]

    def multi_hot(self, rows: Sequence[int], classes: Sequence[str]) -> np.ndarray:
        """Returns (rows, classes) of 0 and 1.

        Raises:
            DataError: a class is none of `classes`.
        """
        index = {name: k for k, name in enumerate(classes)}
        table = np.zeros((len(rows), len(classes)), np.uint8)
        for position, row in enumerate(rows):
            for name in self.labels[row]:
                if name not in index:
                    raise DataError(f"{self.path}: {self.files[row]}: class {name!r} is not among those of training")
                table[position, index[name]] = 1
        return table


def find_label_file(folder: Path) -> Path | None:
    """Returns the file of labels in a folder, if it has one."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read_label_file(path: Path, label_key: str | None = None) -> LabelFile:
    """Returns what a file of labels says; `label_key` names the column of the classes where its name is unusual.

    Raises:
        DataError: it is not of one of the forms that are read.
    """
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix == ".csv":
            rows: Any = list(csv.DictReader(text.splitlines()))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if isinstance(rows, dict):
        rows = [{"file_name": name, "labels": labels} for name, labels in rows.items()]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: holds no rows of a file name and its labels")
    columns = list(rows[0])
    file_key = next((key for key in FILE_COLUMNS if key in columns), columns[0])
    if label_key is not None and label_key not in columns:
        raise DataError(f"{path}: has no column {label_key!r} (label_key), only {', '.join(map(repr, columns))}")
    key = label_key or next((key for key in LABEL_COLUMNS if key in columns and key != file_key), None)
    files = [str(row.get(file_key)) for row in rows]
    if key is None:
        classes, labels = _from_columns(path, files, rows, [name for name in columns if name != file_key])
    else:
        lists = split_cells([row.get(key) for row in rows], lambda row: f"{path}: {files[row]}")
        labels = [[str(name) for name in dict.fromkeys(names) if str(name)] for names in lists]
        classes = sorted({name for names in labels for name in names}, key=_order)
    if not classes:
        raise DataError(f"{path}: names no class")
    return LabelFile(path, files, labels, classes)


def _from_columns(
    path: Path, files: list[str], rows: list[Mapping[str, Any]], classes: list[str]
) -> tuple[list[str], list[list[str]]]:
    labels = []
    for file, row in zip(files, rows, strict=True):
        values = {name: str(row.get(name, "")).strip().lower() for name in classes}
        wrong = next((name for name, value in values.items() if value not in _YES | _NO), None)
        if wrong is not None:
            raise DataError(
                f"{path}: {file}: column {wrong!r} holds {row.get(wrong)!r}: columns of classes hold 0 or 1, or one "
                f"column named {' or '.join(map(repr, LABEL_COLUMNS[:3]))} names them (else set data.label_key)"
            )
        labels.append([name for name, value in values.items() if value in _YES])
    return classes, labels


def _order(name: str) -> tuple[int, int, str]:
    """Numbers by their value, before words."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)
