"""Several labels an image, told as a list: of the classes' numbers or names, or of a 0 or 1 for each class."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_flax.train.data.source import DataError, check_label

DIVIDERS = "|;,"


def numbered(count: int) -> list[str]:
    """Returns the names of classes that have numbers alone."""
    return [str(label) for label in range(count)]


def split_cells(cells: Sequence[object], where: Callable[[int], str]) -> list[list[object]]:
    """Returns the list that each cell stands for: one, JSON's text of one, or words with | ; , or spaces between them.

    Args:
        cells: values of a column; of texts the first divider that any of them has divides all.
        where: what messages call a cell, by its position.

    Raises:
        DataError: a text that begins as a list of JSON does is none.
    """
    texts = [cell for cell in cells if isinstance(cell, str) and not cell.lstrip().startswith("[")]
    divider = next((mark for mark in DIVIDERS if any(mark in text for text in texts)), None)
    lists = []
    for position, cell in enumerate(cells):
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except ValueError as error:
                raise DataError(f"{where(position)}: {cell!r} is no JSON list ({error})") from error
        if isinstance(cell, str):
            cell = [part.strip() for part in cell.split(divider) if part.strip()]
        elif cell is None:
            cell = []
        lists.append(cell if isinstance(cell, list) else [cell])
    return lists


def find_classes(
    source: str, rows: Sequence[object], names: Sequence[str] | None = None, num_classes: int | None = None
) -> tuple[bool, list[str]]:
    """Returns whether the lists hold a 0 or 1 for each class, and the classes' names.

    Otherwise a list holds the classes' numbers or names. It holds 0 and 1 where all lists are of one length, have
    nothing else, and one has a number twice, which a list of classes cannot.

    Args:
        source: what messages call the rows.
        rows: of training, which tells the classes: another split may not have all of them.
        names: of the classes, in their order, where something tells them.
        num_classes: how many there are, where something tells that; None: as many as the numbers say.

    Raises:
        DataError: rows are no lists, hold something else, or may be either.
    """
    lists: list[list[Any]] = [row for row in rows if isinstance(row, list)]
    if len(lists) < len(rows):
        wrong = next(row for row in rows if not isinstance(row, list))
        raise DataError(f"{source}: must hold lists with data.multi_label, got {wrong!r:.80}")
    values = {value if isinstance(value, str | int) else None for row in lists for value in row}
    if values and all(isinstance(value, str) for value in values):
        return False, list(names) if names else sorted(map(str, values))
    if not all(isinstance(value, int) for value in values):
        raise DataError(f"{source}: must hold lists of classes' numbers or names")
    lengths = {len(row) for row in lists}
    if values and values <= {0, 1} and len(lengths) == 1 and (not names or lengths == {len(names)}):
        if any(len(set(row)) < len(row) for row in lists):
            return True, list(names or numbered(len(lists[0])))
        raise DataError(f"{source}: may hold classes' numbers or a 0 or 1 for each class: list the classes' names")
    return False, list(names or numbered(num_classes or max((max(row, default=0) for row in lists), default=0) + 1))


def multi_hot(source: str, rows: Sequence[object], is_hot: bool, classes: Sequence[str]) -> np.ndarray:
    """Returns (rows, classes) of 0 and 1.

    Raises:
        DataError: a row is no list, or has a class that is none of `classes`.
    """
    table = np.zeros((len(rows), len(classes)), np.uint8)
    index = {name: number for number, name in enumerate(classes)}
    for position, row in enumerate(rows):
        where = f"{source}[{position}]"
        if not isinstance(row, list):
            raise DataError(f"{where}: must be a list with data.multi_label, got {row!r}")
        if is_hot:
            if len(row) != len(classes) or not all(value in (0, 1) for value in row):
                raise DataError(f"{where}: must have a 0 or 1 for each of {len(classes)} classes, got {row!r:.80}")
            table[position] = row
            continue
        for label in row:
            if isinstance(label, str) and label not in index:
                raise DataError(f"{where}: class {label!r} is not among those of training")
            table[position, index[label] if isinstance(label, str) else check_label(label, len(classes), where)] = 1
    return table
