"""The 1,797 handwritten digits that come with scikit-learn, 8 x 8 pixels."""

from __future__ import annotations

import numpy as np

from vit_flax.train.config import DataConfig
from vit_flax.train.data.source import SPLITS, ArraySource, check_split, split_indices

SCALE = 15  # pixels of 0..16 become 0..240: whole numbers, nothing is rounded


def find_splits(data: DataConfig) -> dict[str, str]:
    """Returns none: the digits come in one piece."""
    return {}


def open_source(data: DataConfig, split: str, channels: int, num_classes: int | None) -> ArraySource:
    """Opens the training digits, or those held out ('val' and 'test' are the same)."""
    check_split("digits", split, SPLITS)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error

    bunch = load_digits()
    labels = np.asarray(bunch.target, np.int64)  # pyright: ignore[reportAttributeAccessIssue]
    images = (np.asarray(bunch.images) * SCALE).astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    kept = split_indices(labels, split, data.val_share)
    return ArraySource(f"digits/{split}", images[kept][..., None], labels[kept], [str(digit) for digit in range(10)])
