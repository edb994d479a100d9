"""Image retrieval by label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_flax.evaluators.frozen_features import FrozenFeatures
from vit_flax.evaluators.neighbours import nearest


def recall_at(images: FrozenFeatures, counts: Sequence[int]) -> tuple[dict[int, float], int]:
    """Returns recall at each count, in [0, 1], and the number of queries.

    Every image is a query among all others, by cosine; recall at k is the share of queries with an image of their own
    label among the first k. Images that are the only one of their label are no queries.

    Raises:
        ValueError: no two images have the same label, or there are fewer images than neighbours.

    Reference: Recall@K of metric learning, arXiv 1511.06452.
    """
    _, inverse, sizes = np.unique(images.labels, return_inverse=True, return_counts=True)
    asking = sizes[inverse] > 1
    if not asking.any():
        raise ValueError("no two images have the same label: there is nothing to retrieve")
    found = nearest(images.features, images.features, max(counts), without_self=True)
    same = (images.labels[found.indices] == images.labels[:, None])[asking]
    return {count: float(same[:, :count].any(1).mean()) for count in counts}, int(asking.sum())
