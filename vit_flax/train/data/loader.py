"""Batches of a source: the same ones for any number of processes, workers and restarts."""

from __future__ import annotations

import logging
import math
import os
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from vit_flax.preprocessing.decode import BadImageError
from vit_flax.preprocessing.evaluation import PAD, Preprocessing
from vit_flax.train.config import DataConfig
from vit_flax.train.data.augment import TrainTransform
from vit_flax.train.data.pairs import Pairs
from vit_flax.train.data.prepared import preprocessing_of
from vit_flax.train.data.source import ArraySource, DataError, Source

logger = logging.getLogger(__name__)
Batch = dict[str, Any]
ENDLESS = 1 << 48  # steps
MAX_THREADS = 16


class Batches:
    """One process's share of every batch, by the number of the step; can be pickled into a worker process.

    Training: step k of an epoch has rows k*B..(k+1)*B of one permutation of all images, or of as many draws with
    replacement; those left over, fewer than one batch, are left out until the next epoch's. Evaluation: in their order,
    the last batch padded.
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
        """Puts an image into its place; in training the next one that can be read takes the place of a bad one."""
        # the numbers belong to the image asked for, wherever and whenever it is read
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


class Loader:
    """An iterator over batches: 'image' uint8 (B, H, W, C), 'label' int32 (B,) or int8 (B, K), 'index' int64 (B,).

    Images that are cut into patches at any size are a list of arrays. The label of an image with a text is the text's
    tokens, int32 (B, N).

    'index' tells which image of the source a row is. Rows that only pad a batch of evaluation, and images that cannot
    be read in evaluation, have label and index -1. Batches are made ahead by threads or processes of Grain.
    """

    def __init__(self, batches: Batches, threads: int, workers: int, prefetch: int) -> None:
        self._batches, self._threads, self._workers, self._prefetch = batches, threads, workers, prefetch
        self._iterator: Any = None
        self._step = 0
        self.bad: dict[int, str] = {}  # index of every image that could not be read, and why

    @property
    def source(self) -> Source:
        """Where the images come from."""
        return self._batches.source

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; of an evaluation, all there are."""
        return self._batches.steps_per_epoch

    def __iter__(self) -> Self:
        """Returns itself: training goes on where it is, evaluation starts again."""
        if not self._batches.train:
            self.close()
            self._step = 0
        return self

    def __next__(self) -> Batch:
        if not self._batches.train and self._step >= self.steps_per_epoch:
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        if "error" in batch:
            raise DataError(batch["error"])
        self._step += 1
        for row, reason in batch.pop("bad"):
            if row not in self.bad:
                self.bad[row] = reason
                logger.warning("left out %s: %s (%d so far)", self.source.describe(row), reason, len(self.bad))
        if self.bad:
            check_share(self.source, self.bad, self._batches.max_bad_share)
        return batch

    def _start(self) -> Any:
        try:
            from absl import flags
            from grain import python as grain
        except ImportError as error:
            raise ImportError("batches are made by grain: pip install 'vit-linen[train]'") from error

        if not flags.FLAGS.is_parsed():  # outside absl's own main, Grain's worker processes stop over unread flags
            flags.FLAGS.mark_as_parsed()
        self._batches.first = self._step
        ahead = max(self._prefetch, self._threads)
        if self._workers:  # each worker makes every n-th batch, so that their number changes nothing
            ahead = self._threads
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        dataset = grain.MapDataset.source(self._batches).to_iter_dataset(options)
        if self._workers:
            buffer = max(1, math.ceil(self._prefetch / self._workers))
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self._workers, buffer))
        return iter(dataset)

    def describe(self, indices: np.ndarray) -> list[str]:
        """Returns the names of the images of a batch's 'index'."""
        return [self.source.describe(int(index)) for index in indices if index >= 0]

    def get_state(self) -> dict[str, object]:
        """Returns the position as JSON types: the same for any number of processes and workers."""
        batches = self._batches
        position = {"step": self._step, "bad": [[row, reason] for row, reason in self.bad.items()]}
        return {**position, "examples": len(self.source), "batch_size": batches.batch_size, "seed": batches.seed}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores the position of `get_state`.

        Raises:
            DataError: it is of other data, another batch size or another seed.
        """
        own = self.get_state()
        for name in ("examples", "batch_size", "seed"):
            if state[name] != own[name]:
                raise DataError(f"{self.source.name}: cannot go on: {name} was {state[name]} and is {own[name]} now")
        self.close()
        self._step = int(state["step"])
        self.bad = {int(row): reason for row, reason in state["bad"]}

    def close(self) -> None:
        """Ends threads and worker processes; the next batch starts them again."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None and hasattr(iterator, "close"):
            iterator.close()


def make_loader(
    source: Source,
    data: DataConfig,
    *,
    image_size: tuple[int, int],
    channels: int,
    train: bool,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    preprocessing: Preprocessing | None = None,
) -> Loader:
    """Returns the loader of this process's share of every batch.

    Args:
        source: the images.
        data: batch sizes, augmentation, evaluation's transform, workers, threads and prefetch count here.
        image_size: (height, width) of the batches' images.
        channels: of the batches' images.
        train: endless shuffled and augmented batches; otherwise all images once, in order, the last batch padded.
        seed: of order and augmentation.
        process_index: which of the processes this is.
        process_count: how many processes take part.
        preprocessing: evaluation's transform in place of the one that `data` describes; images come out normalised.

    Raises:
        DataError: the batch does not divide into processes, or there are fewer training images than one batch has.
    """
    batch_size = data.batch_size if train else data.eval_batch_size or data.batch_size
    if batch_size % process_count:
        raise DataError(f"a batch of {batch_size} images is not divisible by {process_count} processes")
    if train and len(source) < batch_size:
        raise DataError(f"{source.name}: {len(source)} images are fewer than one batch of {batch_size}")
    floats = not train and preprocessing is not None
    if train:
        mean = data.mean * channels if len(data.mean) == 1 else data.mean
        fill = tuple(min(255, max(0, round(255 * value))) for value in mean)
        transform: Any = TrainTransform(data.augment, image_size, channels, fill)
    elif preprocessing is not None:
        transform = preprocessing
    else:
        own = preprocessing_of(data, image_size, channels)
        # zeros around normalised pixels are no bytes
        transform, floats = (own.unit_pixels, True) if own.crop_mode == PAD else (own.crop, False)
    patch_size = None if preprocessing is None else preprocessing.patch_size
    size = (*image_size, channels) if patch_size is None else (patch_size, patch_size, channels)
    share = (process_index, process_count)
    chances = balanced_chances(source.labels) if train and data.sampler == "balanced" else None
    shape = (len(source.class_names),) if data.multi_label else ()
    if isinstance(source, Pairs):
        shape = (source.config.context_length,)
    batches = Batches(
        source,
        transform,
        size,
        batch_size,
        seed,
        train,
        share,
        data.max_bad_share,
        np.float32 if floats else np.uint8,
        chances,
        shape,
        np.int8 if data.multi_label else np.int32,
        patch_size is not None,
    )
    threads = data.threads or (1 if isinstance(source, ArraySource) else min(MAX_THREADS, os.cpu_count() or 1))
    return Loader(batches, threads, data.workers, data.prefetch)
