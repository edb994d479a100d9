"""An iterator over batches, made ahead by threads or processes of Grain, and its position."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from vit_flax.preprocessing.evaluation import PAD, Preprocessing
from vit_flax.train.config import DataConfig
from vit_flax.train.data.augment import TrainTransform
from vit_flax.train.data.batches import Batch, Batches, balanced_chances, check_share
from vit_flax.train.data.pairs import Pairs
from vit_flax.train.data.prepared import preprocessing_of
from vit_flax.train.data.source import ArraySource, DataError, Source

logger = logging.getLogger(__name__)
MAX_THREADS = 16


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
