"""Evaluation over a loader's batches: loss, top-1 and top-5 accuracy, average precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from vit_flax.train.config import TrainConfig
from vit_flax.train.sharding import place_batch
from vit_flax.zero_shot import recall_of_groups


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics of an evaluation."""

    numbers: dict[str, float | int]  # loss, count, and accuracy and accuracy5 or mean_average_precision
    per_class: np.ndarray  # (K,) accuracy, or average precision; NaN for a class without images
    # (K, K) counts, a row a label; None: too many classes, or several labels an image
    confusion: np.ndarray | None = None

    def describe(self) -> str:
        """Describes the main metrics."""
        numbers = self.numbers
        if "recall" in numbers:
            pairs = f"image to text {numbers['image_to_text@1']:.2%}, text to image {numbers['text_to_image@1']:.2%}"
            return f"recall@1 {pairs} of {numbers['count']:,} images, loss {numbers['loss']:.4f}"
        if "mean_average_precision" in numbers:
            score = f"mAP {numbers['mean_average_precision']:.2%}"
        else:
            score = f"top-1 {numbers['accuracy']:.2%}"
        return f"{score} of {numbers['count']:,} images, loss {numbers['loss']:.4f}"


def score_name(config: TrainConfig) -> str:
    """Returns the name of the metric that the best weights maximise."""
    if config.has_pairs:
        return "recall"
    return "mean_average_precision" if config.data.multi_label else "accuracy"


def evaluate(
    loader: Iterable[Mapping[str, np.ndarray]],
    eval_function: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    mesh: Mesh,
) -> Scores:
    """Returns the scores of parameters on all images of a loader."""
    sums: dict[str, Any] = {}
    ranked: list[tuple[np.ndarray, np.ndarray]] = []
    embedded: list[tuple[np.ndarray, ...]] = []
    scale = 1.0
    for batch in loader:
        placed = place_batch({name: batch[name] for name in ("image", "label")}, mesh)
        # two batches at most are on the devices. Dispatched without a bound, they fill the memory; and the devices of
        # one CPU deadlock once a device's queue is full (32 programs) of what waits for another's all-reduce
        jax.block_until_ready(sums)
        found = eval_function(params, placed)
        if "texts" in found:
            scale = float(found["logit_scale"])
            embedded.append(tuple(np.asarray(found[name]) for name in ("image_embeddings", "text_embeddings", "texts")))
            continue
        if "logits" in found:
            ranked.append((np.asarray(found.pop("logits")), np.asarray(found.pop("labels"))))
        sums = found if not sums else jax.tree.map(lambda a, b: a + b, sums, found)
    if embedded:
        images, texts, tokens = (np.concatenate(parts) for parts in zip(*embedded, strict=True))
        return _retrieval(images, texts, tokens, scale)
    sums = jax.tree.map(np.asarray, sums)
    count = int(sums["count"])
    numbers: dict[str, float | int] = {"loss": float(sums["loss"]) / max(1, count), "count": count}
    if ranked:
        logits, labels = (np.concatenate(parts) for parts in zip(*ranked, strict=True))
        counts = labels[:, 0] >= 0
        per_class = average_precision(logits[counts], labels[counts])
        numbers["mean_average_precision"] = float(np.nanmean(per_class)) if np.isfinite(per_class).any() else 0.0
        return Scores(numbers, per_class)
    for name, key in (("accuracy", "correct"), ("accuracy5", "correct5")):
        numbers[name] = float(sums[key]) / max(1, count)
    confusion = sums.get("confusion")
    per_class = np.zeros(0)
    if confusion is not None:
        rows = confusion.sum(1)
        per_class = np.where(rows > 0, np.diag(confusion) / np.maximum(1, rows), np.nan)
    return Scores(numbers, per_class, confusion)


def _retrieval(images: np.ndarray, texts: np.ndarray, tokens: np.ndarray, scale: float) -> Scores:
    """Returns image-text retrieval recall both ways, and the contrastive cross-entropy over all texts.

    Images whose texts are the same are all right for it.
    """
    counts = tokens[:, 0] >= 0
    images, texts = images[counts], texts[counts]
    groups = np.unique(tokens[counts], axis=0, return_inverse=True)[1].reshape(-1)
    found: dict[str, float | int] = {**recall_of_groups(images, texts, groups, groups)}
    logits = (scale * texts.astype(np.float64) @ row.astype(np.float64) for row in images)  # not all at once
    losses = [np.logaddexp.reduce(row) - row[number] for number, row in enumerate(logits)]
    found["recall"] = (found["image_to_text@1"] + found["text_to_image@1"]) / 2
    return Scores({"loss": float(np.mean(losses)), "count": len(images), **found}, np.zeros(0))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes each class's average precision, NaN for a class that no image has.

    It is the sum over the thresholds of what recall rises by, times the precision there; images of one score share a
    threshold.

    Args:
        scores: (images, classes).
        labels: (images, classes) of 0 and 1.

    Reference: sklearn.metrics.average_precision_score.
    """
    found = np.full(scores.shape[1], np.nan)
    for k in range(scores.shape[1]):
        order = np.argsort(-scores[:, k], kind="stable")
        ranked, hits = scores[order, k], np.cumsum(labels[order, k], dtype=np.int64)
        if not len(hits) or not hits[-1]:
            continue
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last image of each score
        precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
        found[k] = (np.diff(recall, prepend=0.0) * precision).sum()
    return found
