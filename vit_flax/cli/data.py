"""The data source of a command, its images preprocessed for the model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_flax.cli.loading import Loaded
    from vit_flax.train.config import DataConfig
    from vit_flax.train.data.loader import Loader


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a data source."""
    parser.add_argument("--data", required=True, metavar="SOURCE[:PATH]", help="data source, such as image_folder:PATH")
    parser.add_argument("--split", default="test", help="train, val or test (default test)")
    parser.add_argument("--image-key", help="column or feature of the image, where its name is unusual")
    parser.add_argument("--label-key", help="column or feature of the label, where its name is unusual")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default 0)")
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        metavar="X",
        help="largest share of unreadable ones (default 0.01)",
    )


def data_config(options: argparse.Namespace) -> DataConfig:
    """Returns the source that the options name.

    Raises:
        ValueError: a folder is given in place of a source.
    """
    from vit_flax.train.config import DataConfig
    from vit_flax.train.data import SOURCES

    name, _, path = options.data.partition(":")
    if Path(options.data).is_dir() and options.data not in SOURCES:
        raise ValueError(f"--data {options.data} is a folder; did you mean --data image_folder:{options.data}?")
    return DataConfig(
        name=name, path=path or None, batch_size=options.batch_size, workers=options.workers,
        image_key=options.image_key, label_key=options.label_key, max_bad_share=options.max_bad_share,
    )  # fmt: skip


def open_data(
    options: argparse.Namespace, loaded: Loaded, split: str, num_classes: int | None, texts: bool = False
) -> Loader:
    """Returns the loader of a split's images in order, preprocessed for the model; with `texts` they need no classes.

    Raises:
        ValueError: the data cannot be used, or the preprocessing does not resize images to one size.
    """
    from vit_flax.train.data import open_source
    from vit_flax.train.data.loader import make_loader

    config, transform = loaded.predictor.model.config, loaded.transform
    data = data_config(options)
    source = open_source(data, split, config.in_chans, num_classes, texts)
    source.decoding = transform.decoding
    if transform.varies and transform.patch_size is None:
        raise ValueError(f"{loaded.origin} does not resize images to one size: pass a --preprocessing FILE that does")
    return make_loader(
        source, data, image_size=config.image_size, channels=config.in_chans, train=False, preprocessing=transform
    )
