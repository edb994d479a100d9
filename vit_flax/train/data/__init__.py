"""Images for training and evaluation: one file for each source, and the loader that batches them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from vit_flax.suggestions import suggest
from vit_flax.train.config import DataConfig
from vit_flax.train.data.source import DataError, Example, Source

__all__ = ["SOURCES", "DataError", "Example", "Source", "open_source"]

# Name to module, which is imported when the source is opened: each needs a library of its own.
SOURCES = {
    name: f"vit_flax.train.data.{name}"
    for name in ("digits", "fashion_mnist", "image_folder", "hf_dataset", "array_record", "webdataset")
}


def open_source(data: DataConfig, split: str, channels: int = 3, num_classes: int | None = None) -> Source:
    """Opens the images that `data` names.

    Args:
        data: `name`, `path`, `val_share`, `image_key` and `label_key` count here.
        split: 'train', 'val' or 'test'.
        channels: what image files are decoded to, 1 or 3.
        num_classes: of the model; labels must be below it. None: as many as the data have.

    Raises:
        DataError: no such source (the nearest is suggested), or data that cannot be used.
    """
    if data.name not in SOURCES:
        hint = suggest(data.name, SOURCES, f"there are {', '.join(SOURCES)}")
        raise DataError(f"no data source {data.name!r}; {hint}")
    if channels not in (1, 3):
        raise DataError(f"images are read with 1 or 3 channels, the model has in_chans={channels}")
    opened: Callable[..., Source] = import_module(SOURCES[data.name]).open_source
    source = opened(data, split, channels, num_classes)
    if num_classes is not None and len(source.class_names) > num_classes:
        raise DataError(f"{source.name}: has {len(source.class_names)} classes, the model only {num_classes}")
    return source
