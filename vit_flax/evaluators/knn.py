"""k-nearest-neighbour classification."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from vit_flax.evaluators.neighbours import Neighbours

TEMPERATURE = 0.07


def vote(
    neighbours: Neighbours,
    labels: Int[np.ndarray, " g"],
    num_classes: int,
    count: int,
    temperature: float | None = TEMPERATURE,
) -> Int[np.ndarray, " q"]:
    """Returns the class with the most votes of each query's first `count` neighbours.

    A vote weighs exp(cosine / temperature), or 1 without a temperature; ties go to the smaller class index.

    Args:
        neighbours: neighbours of every query, by cosine where there is a temperature.
        labels: labels of the gallery.
        num_classes: number of classes.
        count: number of voting neighbours.
        temperature: softmax temperature of the weights; None: equal votes.

    Reference: DINOv2's KnnModule, arXiv 1805.01978; scikit-learn's KNeighborsClassifier.
    """
    indices, scores = neighbours.indices[:, :count], neighbours.scores[:, :count]
    weights = np.ones_like(scores) if temperature is None else np.exp((scores - scores[:, :1]) / temperature)
    votes = np.zeros((len(indices), num_classes))
    np.add.at(votes, (np.arange(len(indices))[:, None], labels[indices]), weights)
    return votes.argmax(1)
