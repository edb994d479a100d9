"""Batches of a source, the same for any number of processes, workers and restarts."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_flax.preprocessing.decode import BadImageError
from vit_flax.train.data.source import DataError, Source

Batch = dict[str, Any]
ENDLESS = 1 << 48  # steps


class Batches:
    """One process's share of every batch, indexed by step; can be pickled into a worker process.

    Training: step k of an epoch has rows k*B..(k+1)*B of one permutation of all images, or of as many draws with
    replacement; the rest, fewer than one batch, is left out of the epoch. Evaluation: all images in their order, the
    last batch padded.
    """

    def __init__(
        self, source: Source, transform: Callable[..., np.ndarray], size: tuple[int, int, int],
        batch_size: int, seed: int, train: bool, share: tuple[int, int], max_bad_share: float,
        dtype: type = np.uint8, chances: np.ndarray | None = None, label_shape: tuple[int, ...] = (),
        label_dtype: type = np.int32, varies: bool = False,
    ) -> None:  # fmt: skip
        self.source, self.transform, self.size, self.dtype = source, transform, size, dtype
        self.batch_size, self.seed, self.train, self.max_bad_share = batch_size, seed, train, max_bad_share
        self.process_index, self.process_count = share
        self.chances = chances  # of each image in a draw with replacement; None: a permutation
        self.label_shape, self.label_dtype = label_shape, label_dtype
        self.varies = varies  # a batch's images are a list, each of its own size; what is missing has `size`
        examples = len(source)
        self.steps_per_epoch = examples // batch_size if train else math.ceil(examples / batch_size)
        self.first = 0  # the step that index 0 stands for
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _orders={}, _lock=threading.Lock())

    def __len__(self) -> int:
        return (ENDLESS if self.train else self.steps_per_epoch) - self.first

    def rows(self, step: int) -> tuple[int, np.ndarray]:
        """Returns the epoch of a step, and the indices of this process's images; -1 is padding."""
        epoch, step = divmod(step, self.steps_per_epoch)
        part = self.batch_size // self.process_count
        start = step * self.batch_size + self.process_index * part
        if self.train:
            return epoch, self._order(epoch)[start : start + part]
        rows = np.arange(start, start + part)
        return epoch, np.where(rows < len(self.source), rows, -1)

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                for old in sorted(self._orders)[:-1]:  # threads may still be at the end of the one before
                    del self._orders[old]
                rng, count = np.random.default_rng([self.seed, epoch]), len(self.source)
                drawn = None if self.chances is None else rng.choice(count, count, p=self.chances)
                self._orders[epoch] = rng.permutation(count) if drawn is None else drawn
            return self._orders[epoch]

    def __getitem__(self, index: int) -> Batch:
        """Returns the batch of a step, or {'error': text}: exceptions lose their type between processes."""
        epoch, rows = self.rows(self.first + index)
        black = np.zeros((len(rows), *self.size), self.dtype)
        batch: Batch = {
            "image": list(black) if self.varies else black,
            "label": np.full((len(rows), *self.label_shape), -1, self.label_dtype),
            "index": np.full(len(rows), -1, np.int64),
        }
        bad: dict[int, str] = {}
        try:
            for position, row in enumerate(rows):
                if row >= 0:
                    self._fill(batch, position, int(row), epoch, bad)
        except DataError as error:
            return {"error": str(error)}
        batch["bad"] = list(bad.items())
        return batch

    def _fill(self, batch: Batch, position: int, row: int, epoch: int, bad: dict[int, str]) -> None:
        """Reads an image into the batch; in training the next readable image replaces an unreadable one."""
        # the random numbers depend on the seed, the epoch and the image alone
        rng = random.Random((self.seed << 96) | (epoch << 64) | row)
        while True:
            try:
                example = self.source[row]
                batch["image"][position] = self.transform(example["image"], rng) if self.train else self.transform(
                    example["image"]
                )  # fmt: skip
            except BadImageError as error:
                bad[row] = str(error)
                if not self.train:
                    return
                check_share(self.source, bad, self.max_bad_share)
                row = (row + 1) % len(self.source)
                continue
            batch["label"][position], batch["index"][position] = example["label"], row
            return


def balanced_chances(labels: np.ndarray) -> np.ndarray:
    """Returns each image's sampling probability under class-balanced sampling.

    Reference: torch.utils.data.WeightedRandomSampler with weights of one over the images of the class.
    """
    chances = 1 / np.bincount(labels)[labels]
    return chances / chances.sum()


def check_share(source: Source, bad: dict[int, str], allowed: float) -> None:
    """Raises DataError when more images cannot be read than are allowed, or none can."""
    if len(bad) > allowed * len(source) or len(bad) >= len(source):
        row, reason = next(reversed(bad.items()))
        raise DataError(
            f"{source.name}: {len(bad)} of {len(source)} images cannot be read, more than "
            f"data.max_bad_share {allowed:g} allows; the last one: {source.describe(row)}: {reason}"
        )
