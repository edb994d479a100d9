"""WebDataset of images with texts: tar files whose members NAME.jpg and NAME.txt (or NAME.json) belong together."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np

from vit_flax.preprocessing.decode import SUFFIXES, BadImageError
from vit_flax.train.config import DataConfig
from vit_flax.train.data.source import SPLITS, DataError, check_split, pick_split, require_folder, split_indices
from vit_flax.train.data.webdataset import WebDataset, find_splits, splits_of, tar_files

__all__ = ["PAIRS", "WebPairs", "find_splits", "open_source"]

PAIRS = True
TEXT_KEYS = ("caption", "text", "txt")  # in NAME.json
_Place = tuple[int, int, int]  # shard, offset, size


class WebPairs(WebDataset):
    """Images and texts at known places of tar files."""

    def __init__(
        self, name: str, shards: list[Path], names: list[str], places: np.ndarray, texts: np.ndarray, key: str | None,
        channels: int,
    ) -> None:  # fmt: skip
        super().__init__(name, shards, names, places, np.zeros(len(names), np.int64), [], channels)
        self.texts, self.key = texts, key  # texts: offset, size, and 1 for a .json

    def text(self, index: int) -> str:
        """Returns the text of an image; DataError where it is none."""
        offset, size, is_json = map(int, self.texts[index])
        where = self.describe(index)
        try:
            words = self.read(int(self.places[index, 0]), offset, size).decode("utf-8")
            found = json.loads(words) if is_json else words
        except (ValueError, BadImageError) as error:
            raise DataError(f"{where}: its text cannot be read: {error}") from error
        if is_json:
            keys = (self.key,) if self.key else TEXT_KEYS
            found = next((found[k] for k in keys if k in found), None) if isinstance(found, dict) else None
        if not isinstance(found, str):
            raise DataError(f"{where}: has no text ({self.key or ' or '.join(TEXT_KEYS)!r} in .json)")
        return found.strip()


def open_source(data: DataConfig, split: str, channels: int, num_classes: int | None) -> WebPairs:
    """Opens the tar files of a split: SPLIT/*.tar, or *SPLIT*.tar, or all of them divided by `val_share`.

    Raises:
        DataError: no such files, a damaged one, or a sample without an image or a text.
    """
    del num_classes
    check_split("webdataset_pairs", split, SPLITS)
    folder = require_folder("webdataset_pairs", data.path)
    shards = tar_files(folder)
    found, words = splits_of(folder, shards)
    called = pick_split(str(folder), split, found) if found else split
    if found:
        shards = [shard for shard in shards if called in words[shard]]
    rows = [
        (name, (number, *place), text) for number, shard in enumerate(shards) for name, place, text in _index(shard)
    ]
    if not rows:
        raise DataError(f"{folder}: its .tar files hold no images")
    kept = np.arange(len(rows)) if found else split_indices(np.zeros(len(rows), np.int64), split, data.val_share)
    names = [rows[index][0] for index in kept]
    places, texts = (np.asarray([rows[index][part] for index in kept]).reshape(-1, 3) for part in (1, 2))
    return WebPairs(f"webdataset_pairs {folder}/{called}", shards, names, places, texts, data.text_key, channels)


def _index(shard: Path) -> list[tuple[str, tuple[int, int], _Place]]:
    """Returns name, (offset, size) and (offset, size, whether JSON) of every image and its text in a tar file."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if member.isfile() and stem:
                    samples.setdefault(f"{folder}/{stem}" if folder else stem, {})[suffix.lower()] = member
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard}: not a whole, uncompressed tar file ({error})") from error
    found = []
    for name, members in samples.items():
        images = [suffix for suffix in members if f".{suffix}" in SUFFIXES]
        text = members.get("txt") or members.get("json")
        if len(images) != 1 or text is None:
            said = "no text (.txt or .json)" if images else "no image"
            raise DataError(f"{shard}:{name}: has {said if len(images) < 2 else f'several images {images}'}")
        image = members[images[0]]
        place = (text.offset_data, text.size, int("txt" not in members))
        found.append((name, (image.offset_data, image.size), place))
    return found
