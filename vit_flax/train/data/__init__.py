"""Images for training and evaluation: one file for each source, and the loader that batches them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from vit_flax.config import TextConfig
from vit_flax.suggestions import suggest
from vit_flax.train.config import DataConfig
from vit_flax.train.data.source import DataError, Example, Source

__all__ = ["SOURCES", "DataError", "Example", "Source", "find_splits", "open_source"]

# Name to module, which is imported when the source is opened: each needs a library of its own.
SOURCES = {
    name: f"vit_flax.train.data.{name}"
    for name in (
        "digits",
        "fashion_mnist",
        "image_folder",
        "hf_dataset",
        "array_record",
        "webdataset",
        "shapes",
        "webdataset_pairs",
        "parquet_pairs",
    )
}


def open_source(
    data: DataConfig, split: str, channels: int = 3, num_classes: int | None = None, texts: bool = False
) -> Source:
    """Opens the images that `data` names.

    Args:
        data: `name`, `path`, `val_share`, `image_key` and `label_key` count here.
        split: 'train', 'val' or 'test'.
        channels: what image files are decoded to, 1 or 3.
        num_classes: of the model; labels must be below it. None: as many as the data have.
        texts: whether images with texts will do, which have no classes.

    Raises:
        DataError: no such source (the nearest is suggested), it has no classes, or data that cannot be used.
    """
    if has_pairs(data.name) and not texts:
        there = ", ".join(name for name in SOURCES if not has_pairs(name))
        raise DataError(f"{data.name} has texts and no classes; sources of images with classes: {there}")
    module = _module(data.name)
    if channels not in (1, 3):
        raise DataError(f"images are read with 1 or 3 channels, the model has in_chans={channels}")
    if data.multi_label and not getattr(module, "MULTI_LABEL", False):
        there = [name for name in SOURCES if getattr(_module(name), "MULTI_LABEL", False)]
        raise DataError(f"{data.name} has one label an image; data.multi_label is for {', '.join(there)}")
    source: Source = module.open_source(data, split, channels, num_classes)
    classes = len(source.class_names)
    if num_classes is not None and (classes > num_classes or (data.multi_label and classes < num_classes)):
        only = "only " if classes > num_classes else ""
        raise DataError(f"{source.name}: has {classes} classes, the model {only}{num_classes}")
    return source


def open_pairs(data: DataConfig, split: str, channels: int, text: TextConfig) -> Source:
    """Opens the images that `data` names with their texts, as tokens for a text tower of that config.

    Raises:
        DataError: no such source, it has no texts, or data that cannot be used.
    """
    from vit_flax.train.data.pairs import Pairs

    if not has_pairs(data.name):
        there = ", ".join(name for name in SOURCES if has_pairs(name))
        raise DataError(f"{data.name} has no texts; sources of images with texts: {there}")
    source: Any = open_source(data, split, channels, texts=True)
    if not len(source):
        raise DataError(f"{source.name}: has no images")
    pairs: Any = Pairs(source, data, text)
    return pairs


def has_pairs(name: str) -> bool:
    """Returns whether the images of a source have texts, and no classes."""
    return getattr(_module(name), "PAIRS", False)


def find_splits(data: DataConfig) -> tuple[str, ...]:
    """Returns which of 'train', 'val' and 'test' the data have of their own; none where they come in one piece.

    Raises:
        DataError: no such source (the nearest is suggested), or data that cannot be used.
    """
    return tuple(_module(data.name).find_splits(data))


def _module(name: str) -> ModuleType:
    if name not in SOURCES:
        hint = suggest(name, SOURCES, f"there are {', '.join(SOURCES)}")
        raise DataError(f"no data source {name!r}; {hint}")
    return import_module(SOURCES[name])
