"""An image of queries beside their nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vit_flax.evaluators.neighbours import Neighbours
from vit_flax.preprocessing.decode import import_pillow

if TYPE_CHECKING:
    from PIL import Image

SIDE, FRAME, GAP, TEXT = 112, 5, 10, 18  # pixels
RIGHT, WRONG, PLAIN = (35, 140, 70), (205, 55, 45), (120, 120, 120)
MAX_LETTERS = 17
QUERIES, COLUMNS = 8, 6


def choose_queries(predicted: np.ndarray, labels: np.ndarray, count: int = QUERIES) -> np.ndarray:
    """Returns queries to show: half of them misclassified where there are as many, stratified by class."""
    wrong, right = (_spread(labels, np.flatnonzero((predicted == labels) == is_right)) for is_right in (False, True))
    taken = wrong[: count - min(len(right), count // 2)]
    return np.concatenate([right[: count - len(taken)], taken])


def _spread(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns rows in a round-robin order over the classes."""
    turn = np.zeros(len(rows), np.int64)
    for label in np.unique(labels[rows]):
        own = labels[rows] == label
        turn[own] = np.arange(own.sum())
    return rows[np.lexsort((labels[rows], turn))]


def draw_neighbours(
    rows: Sequence[int],
    query: Callable[[int], tuple[np.ndarray, int]],
    gallery: Callable[[int], tuple[np.ndarray, int]],
    neighbours: Neighbours,
    predicted: np.ndarray,
    class_names: Sequence[str],
    columns: int = COLUMNS,
) -> Image.Image:
    """Returns rows of an image and its nearest neighbours, framed by whether their labels are the same.

    Args:
        rows: indices of the queries to show.
        query: returns the pixels (H, W, C) and the label of a query by its index.
        gallery: returns the same of an image of the gallery.
        neighbours: neighbours of all queries.
        predicted: predicted class of every query.
        class_names: class names by label.
        columns: neighbours to show.
    """
    from PIL import ImageDraw

    module = import_pillow()
    columns = min(columns, neighbours.indices.shape[1])
    cell, height = SIDE + 2 * FRAME + GAP, SIDE + 2 * FRAME + TEXT + GAP
    picture = module.new("RGB", (GAP + (columns + 1) * cell + 2 * GAP, GAP + TEXT + len(rows) * height), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((GAP, GAP), "image", "black")
    pen.text(
        (GAP + cell + 2 * GAP, GAP),
        "its nearest neighbours, green where the label is the same: cosine or distance, label",
        "black",
    )

    def put(column: int, row: int, pixels: np.ndarray, colour: tuple[int, int, int], text: str) -> None:
        left, top = GAP + column * cell + (2 * GAP if column else 0), GAP + TEXT + row * height
        pen.rectangle((left, top, left + SIDE + 2 * FRAME - 1, top + SIDE + 2 * FRAME - 1), fill=colour)
        pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
        image = module.fromarray(pixels)
        zoom = SIDE / max(image.size)
        size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
        smooth = module.Resampling.NEAREST if zoom >= 2 else module.Resampling.BICUBIC
        inside = module.new("RGB", (SIDE, SIDE), "white")
        inside.paste(image.resize(size, smooth), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
        picture.paste(inside, (left + FRAME, top + FRAME))
        pen.text((left, top + SIDE + 2 * FRAME + 2), text, "black")

    for place, row in enumerate(rows):
        pixels, label = query(row)
        taken = class_names[int(predicted[row])]
        is_right = predicted[row] == label
        told = _short(class_names[label]) if is_right else f"{_short(class_names[label], 8)}, not {_short(taken, 8)}"
        put(0, place, pixels, RIGHT if is_right else WRONG, told)
        for column in range(columns):
            other, theirs = gallery(int(neighbours.indices[row, column]))
            colour = RIGHT if theirs == label else WRONG
            score = abs(neighbours.scores[row, column])
            put(column + 1, place, other, colour, f"{score:.3g}  {_short(class_names[theirs], MAX_LETTERS - 7)}")
    return picture


def _short(name: str, letters: int = MAX_LETTERS) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"
