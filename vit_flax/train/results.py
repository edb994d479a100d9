"""Results of a finished run: results.json and plots."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vit_flax.train.config import ResolvedConfig
from vit_flax.train.optimizer import trained_mask
from vit_flax.train.plots import draw_confusion, draw_curves
from vit_flax.train.runlog import LOG, read_log
from vit_flax.train.scoring import Scores, score_name
from vit_flax.train.state import TrainState

RESULTS = "results.json"


def write_results(
    folder: Path, config: ResolvedConfig, found: dict[str, object], scores: Scores, names: tuple[str, ...]
) -> None:
    """Writes results.json: `found`, the run's speed, and each class's score."""
    lines = read_log(folder / LOG)
    speeds = [line["images_per_second"] for line in lines if line["kind"] == "train" and line["images_per_second"]]
    per_class = [None if math.isnan(value) else value for value in scores.per_class.tolist()]
    results = {
        **found,
        "selected_by": score_name(config),
        "images_per_second": float(np.median(speeds)) if speeds else None,
        "per_class": dict(zip(names, per_class, strict=False)),
    }
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def draw_results(folder: Path, config: ResolvedConfig, split: str, scores: Scores, names: tuple[str, ...]) -> None:
    """Plots the run's curves and, with one label an image, the confusion matrix.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    draw_curves(folder / "curves.png", read_log(folder / LOG), folder.name, score_name(config))
    if scores.confusion is not None:
        draw_confusion(folder / "confusion.png", scores.confusion, names, f"{folder.name}, {split}")


def count_parameters(config: ResolvedConfig, state: TrainState) -> dict[str, int]:
    """Counts the parameters, adapters included, and the trained ones among them."""
    flat: dict[str, Any] = flatten_dict(state.params, sep="/")  # pyright: ignore[reportAssignmentType]
    sizes = {path: math.prod(leaf.shape) for path, leaf in flat.items()}
    trained = flatten_dict(trained_mask(config, state.params), sep="/")
    return {
        "parameters": sum(sizes.values()) + sum(leaf.size for leaf in jax.tree.leaves(state.frozen)),
        "trained_parameters": sum(sizes[path] for path in sizes if trained[path]),
    }
