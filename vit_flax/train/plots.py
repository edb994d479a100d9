"""Plots of a run: its curves and the confusion matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_MAX_NAMED = 40  # classes whose names fit beside the matrix


_MAX_COUNTED = 25  # classes whose counts fit into the matrix
_TITLES = {
    "accuracy": "top-1 accuracy, %",
    "mean_average_precision": "mean average precision, %",
    "recall": "recall at 1, images and texts, %",
}


def draw_curves(path: Path, lines: list[dict[str, Any]], run: str, score: str = "accuracy") -> None:
    """Plots a run's loss, learning rate and evaluation score over the steps."""
    figure, axes = _figure(1, 3, (13, 3.8))
    figure.suptitle(run)
    trained = [line for line in lines if line["kind"] == "train"]
    evaluated = [line for line in lines if line["kind"] == "eval"]
    split = evaluated[-1].get("split", "evaluation") if evaluated else "evaluation"
    steps = [line["step"] for line in trained]
    axes[0].plot(steps, [line["loss"] for line in trained], label="training")
    marker = "." if len(evaluated) < 50 else None
    at = [line["step"] for line in evaluated]
    axes[0].plot(at, [line["loss"] for line in evaluated], marker=marker, label=split)
    axes[0].legend()
    axes[1].plot(steps, [line["learning_rate"] for line in trained])
    axes[2].plot(at, [100 * line[score] for line in evaluated], marker=marker, color="C1")
    for axis, title in zip(axes, ("loss", "learning rate", f"{_TITLES[score]} ({split})"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def draw_confusion(path: Path, confusion: np.ndarray, names: tuple[str, ...], run: str) -> None:
    """Plots the confusion matrix, normalised over each label's row; with counts for few classes."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    counted = len(shares) <= _MAX_COUNTED
    side = 4 + (0.4 if counted else 0.25) * min(len(shares), _MAX_NAMED)
    figure, axes = _figure(1, 1, (side + 1, side))
    axis = axes[0]
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(image, fraction=0.046, label="share of the label's images")
    if len(names) <= _MAX_NAMED:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
    if counted:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            dark = shares[row, column] < 0.6
            count = str(int(confusion[row, column]))
            axis.text(column, row, count, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    axis.set_xlabel("answer")
    axis.set_ylabel("label")
    right, count = int(np.trace(confusion)), int(confusion.sum())
    axis.set_title(f"{run}\ntop-1 accuracy {right / max(1, count):.2%} of {count:,} images")
    figure.savefig(path, dpi=120)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
