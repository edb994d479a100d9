"""Hugging Face datasets on disk whose images have texts: a folder of parquet files, or one of `save_to_disk`."""

from __future__ import annotations

import numpy as np

from vit_flax.train.config import DataConfig
from vit_flax.train.data.hf_dataset import IMAGE_COLUMNS, HFDataset, column_of, find_splits, read_rows
from vit_flax.train.data.source import SPLITS, DataError, check_split, require_folder, split_indices

__all__ = ["PAIRS", "ParquetPairs", "find_splits", "open_source"]

PAIRS = True
TEXT_COLUMNS = ("caption", "text", "captions", "txt")


class ParquetPairs(HFDataset):
    """Rows of a dataset with an image and a text; of several texts of an image the first."""

    text_column: str

    def text(self, index: int) -> str:
        """Returns the text of an image; DataError where it is none."""
        value = self.rows[int(index if self.kept is None else self.kept[index])][self.text_column]
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, str):
            raise DataError(f"{self.describe(index)}: column {self.text_column!r} holds no text")
        return value.strip()


def open_source(data: DataConfig, split: str, channels: int, num_classes: int | None) -> ParquetPairs:
    """Opens a split of a dataset on disk; one that has no splits is divided by `val_share`.

    Raises:
        DataError: the folder holds no dataset or not that split, or the image or text column is not found.
        ImportError: the library `datasets` is not installed.
    """
    del num_classes
    check_split("parquet_pairs", split, SPLITS)
    folder = require_folder("parquet_pairs", data.path)
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Hugging Face datasets need their library: pip install datasets") from error

    rows, called = read_rows(datasets, folder, split)
    image = column_of(folder, rows.column_names, "image_key", data.image_key, IMAGE_COLUMNS)
    text = column_of(folder, rows.column_names, "text_key", data.text_key, TEXT_COLUMNS)
    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    labels = np.zeros(len(rows), np.int64)
    kept = None if called else split_indices(labels, split, data.val_share)
    labels = labels if kept is None else labels[kept]
    name = f"parquet_pairs {folder}/{called or split}"
    source = ParquetPairs(name, folder, rows.select_columns([image, text]), kept, image, labels, [], channels)
    source.text_column = text
    return source
