"""The data of a run: its splits and loaders, and the config resolved for them."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh

from vit_flax.config import TwoTowersConfig
from vit_flax.train.config import ResolvedConfig, TrainConfig
from vit_flax.train.config.loss import BALANCED
from vit_flax.train.data import find_splits, open_pairs, open_source
from vit_flax.train.data.checks import check_images, check_sample
from vit_flax.train.data.loader import Loader, make_loader
from vit_flax.train.data.prepared import preprocessing_of
from vit_flax.train.data.source import count_classes
from vit_flax.train.sharding import data_share


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The loaders of a run."""

    train: Loader
    evaluation: Loader  # the best weights are selected on
    eval_split: str  # its name: 'val', or 'test' where the data have no other
    test: Loader | None  # scored once, at the end; None: there is no split besides `evaluation`'s
    class_names: tuple[str, ...]

    def check(self, max_bad_share: float) -> None:
        """Checks images before the first step: the headers of all for evaluation, and of a few for training.

        Raises:
            DataError: too many cannot be read.
        """
        check_sample(self.train.source)
        for loader in (self.evaluation, self.test):
            if loader is not None:
                check_images(loader.source, max_bad_share)

    def counts(self) -> dict[str, int]:
        """Returns how many images each split has."""
        found = {"train": len(self.train.source), self.eval_split: len(self.evaluation.source)}
        return found | ({} if self.test is None else {"test": len(self.test.source)})

    def describe(self) -> str:
        """Describes the splits and their use."""
        counts = self.counts()
        parts = [f"{counts['train']:,} images to train on"]
        parts.append(f"the best weights are chosen on {self.eval_split} ({counts[self.eval_split]:,})")
        if self.test is not None:
            parts.append(f"test ({counts['test']:,}) is reported once, at the end")
        elif self.eval_split == "test":
            parts.append("there is no val: what test then says of them is too good")
        return ", ".join(parts)

    def close(self) -> None:
        """Stops the loaders' threads and processes."""
        for loader in (self.train, self.evaluation, self.test):
            if loader is not None:
                loader.close()


def open_inputs(config: TrainConfig, mesh: Mesh) -> tuple[ResolvedConfig, Inputs]:
    """Opens the data of a config, and returns it resolved for them.

    Raises:
        DataError: the data cannot be used.
        ValueError: there are fewer images than one batch has.
    """
    data, model = config.data, config.model
    splits = find_splits(data)
    eval_split = data.eval_split or ("test" if "test" in splits and "val" not in splits else "val")
    if splits and eval_split in ("val", "test") and eval_split not in splits:
        eval_split = {"val": "test", "test": "val"}[eval_split]  # the only one, which `open_source` takes as well
    names = [data.train_split, eval_split, *(["test"] if "test" in splits and eval_split != "test" else [])]
    if isinstance(model, TwoTowersConfig):
        sources = [open_pairs(data, name, model.in_chans, model.text) for name in names]
    else:
        sources = [open_source(data, name, model.in_chans, model.num_classes) for name in names]
    prepared = preprocessing_of(data, config.image_size, model.in_chans)
    for source in sources:
        source.decoding = prepared.decoding
    counts = None
    if BALANCED in (config.loss.class_weights, config.loss.pos_weight):
        counts = count_classes(sources[0].labels, model.num_classes).tolist()
    resolved = config.resolve(len(sources[0]), counts)
    index, count = data_share(mesh)
    common: dict[str, Any] = {"image_size": config.image_size, "channels": model.in_chans, "seed": config.seed}
    common |= {"process_index": index, "process_count": count}
    loaders = [make_loader(source, data, train=k == 0, **common) for k, source in enumerate(sources)]
    test = loaders[2] if len(loaders) > 2 else None
    return resolved, Inputs(loaders[0], loaders[1], eval_split, test, sources[0].class_names)
