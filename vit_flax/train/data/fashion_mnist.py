"""Fashion-MNIST, and whatever else comes as IDX files of the same names: 28 x 28 grey pixels, ten classes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from vit_flax.train.config import DataConfig
from vit_flax.train.data.source import ArraySource, DataError, check_labels, check_split, require_folder

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
PREFIXES = {"train": "train", "test": "t10k", "val": "t10k"}
MAX_BYTES = 1 << 32  # what a header may ask for


def find_splits(data: DataConfig) -> dict[str, str]:
    """Returns the two splits there are."""
    return {"train": "train", "test": "test"}


def open_source(data: DataConfig, split: str, channels: int, num_classes: int | None) -> ArraySource:
    """Opens the 60,000 images for training or the 10,000 for testing (also called 'val').

    Raises:
        DataError: the folder or a file is missing, or a file is not what its name says.
    """
    check_split("fashion_mnist", split, tuple(PREFIXES))
    folder = require_folder("fashion_mnist", data.path)
    images = read_idx(_find(folder, f"{PREFIXES[split]}-images-idx3-ubyte"), axes=3)
    file = _find(folder, f"{PREFIXES[split]}-labels-idx1-ubyte")
    labels = read_idx(file, axes=1).astype(np.int64)
    if len(images) != len(labels):
        raise DataError(f"{file.name}: {len(labels)} labels, but there are {len(images)} images")
    name = f"fashion_mnist/{'train' if split == 'train' else 'test'}"
    check_labels(labels, CLASS_NAMES, name)
    return ArraySource(name, images[..., None], labels, CLASS_NAMES)


def _find(folder: Path, name: str) -> Path:
    for spelling in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            if (folder / f"{spelling}{suffix}").is_file():
                return folder / f"{spelling}{suffix}"
    raise DataError(f"{folder}: has neither {name} nor {name}.gz")


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Returns the bytes of an IDX file, plain or compressed, as an array of so many axes.

    Raises:
        DataError: it is damaged or of another type.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * axes)
            if len(header) < 4 + 4 * axes or header[:4] != bytes((0, 0, 8, axes)):
                raise DataError(f"{path.name}: not an IDX file of bytes with {axes} axes (starts {header[:4].hex()!r})")
            shape = tuple(int(side) for side in np.frombuffer(header, ">u4", axes, 4))
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise DataError(f"{path.name}: its header asks for {size:,} bytes")
            content = file.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path.name}: damaged ({error})") from error
    if len(content) != size:
        said = "is cut off" if len(content) < size else "goes on behind its end"
        raise DataError(f"{path.name}: {said}: its header says {' x '.join(map(str, shape))} bytes")
    return np.frombuffer(content, np.uint8).reshape(shape)
