"""Features of a frozen model, one vector per image, from one pass over a loader."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vit_flax.inference import Predictor


@dataclasses.dataclass(frozen=True)
class FrozenFeatures:
    """Features of a split's readable images, in their order."""

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    indices: Int[np.ndarray, " n"]  # of the images in their source

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    def take(self, rows: np.ndarray) -> FrozenFeatures:
        """Returns the features of these rows."""
        return FrozenFeatures(self.features[rows], self.labels[rows], self.indices[rows])


def frozen_features(
    predictor: Predictor,
    loader: Iterable[Mapping[str, np.ndarray]],
    numbers: Int[np.ndarray, " k"] | None = None,
    told: Callable[[int], None] = lambda _count: None,
) -> FrozenFeatures:
    """Returns the head's input for every image of a loader, whose batch size is the predictor's.

    Args:
        predictor: predictor of the model.
        loader: batches of preprocessed 'image', 'label' and 'index', as `make_loader` gives them for evaluation.
        numbers: class of every label, -1 to leave its images out; None: labels are classes.
        told: called with the number of images of each batch.

    Raises:
        ValueError: the model has no pooling, so an image has no single vector; or no image is left.
    """
    waiting: collections.deque[tuple[np.ndarray, np.ndarray]] = collections.deque()

    def images() -> Any:
        for batch in loader:
            known = batch["index"] >= 0
            labels = np.where(known, batch["label"], -1)
            labels = labels if numbers is None else np.where(known, numbers[labels], -1)
            waiting.append((labels, batch["index"]))
            yield from batch["image"]

    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for found in predictor.stream("embeddings", images()):
        if found.ndim != 2:
            raise ValueError("the model has no pooling, so an image has no one vector: pass `global_pool='avg'`")
        labels, indices = waiting.popleft()
        rows = np.flatnonzero(labels >= 0)
        parts.append((found[rows].astype(np.float32), labels[rows], indices[rows]))
        told(len(labels))
    if not sum(len(labels) for _, labels, _ in parts):
        raise ValueError("no image is left to evaluate on")
    features, labels, indices = (np.concatenate(part) for part in zip(*parts, strict=True))
    return FrozenFeatures(features, labels, indices)
