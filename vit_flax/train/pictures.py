"""Pictures of a run: its curves and the confusion matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_MAX_NAMED = 40  # classes whose names fit beside the matrix


def draw_curves(path: Path, lines: list[dict[str, Any]]) -> None:
    """Writes a picture of training loss, learning rate and evaluation accuracy over the steps."""
    figure, axes = _figure(1, 3, (13, 3.6))
    trained = [line for line in lines if line["kind"] == "train"]
    evaluated = [line for line in lines if line["kind"] == "eval"]
    steps = [line["step"] for line in trained]
    axes[0].plot(steps, [line["loss"] for line in trained], label="training")
    axes[0].plot([line["step"] for line in evaluated], [line["loss"] for line in evaluated], label="evaluation")
    axes[0].legend()
    axes[1].plot(steps, [line["learning_rate"] for line in trained])
    axes[2].plot([line["step"] for line in evaluated], [100 * line["accuracy"] for line in evaluated], marker=".")
    for axis, title in zip(axes, ("loss", "learning rate", "top-1 accuracy, %"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def draw_confusion(path: Path, confusion: np.ndarray, names: tuple[str, ...]) -> None:
    """Writes a picture of the confusion matrix, rows being labels and each row's sum 1."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 4 + 0.25 * min(len(shares), _MAX_NAMED)
    figure, axes = _figure(1, 1, (side + 1, side))
    axis = axes[0]
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(image, fraction=0.046)
    if len(names) <= _MAX_NAMED:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("answer")
    axis.set_ylabel("label")
    axis.set_title(f"top-1 accuracy {np.trace(confusion) / max(1, confusion.sum()):.2%}")
    figure.savefig(path, dpi=120)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
