"""A folder of images and masks for segmentation: SPLIT/images/NAME.jpg with SPLIT/masks/NAME.png."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from vit_flax.preprocessing.decode import SUFFIXES, BadImageError, import_pillow

IGNORED = 255  # of a mask: no class, counted nowhere
CLASSES_FILE = "classes.txt"


@dataclasses.dataclass(frozen=True)
class MaskFolder:
    """The pairs of one split, and what the classes are called."""

    pairs: tuple[tuple[Path, Path], ...]  # image, mask
    class_names: tuple[str, ...] = ()  # from classes.txt beside the splits, a name a line; (): there is none

    @classmethod
    def open(cls, folder: str | Path, split: str) -> MaskFolder:
        """Returns the pairs of a split, by name.

        Raises:
            ValueError: a folder is missing or empty, or an image has no mask.
        """
        root = Path(folder)
        images, masks = root / split / "images", root / split / "masks"
        for place in (images, masks):
            if not place.is_dir():
                raise ValueError(f"{place}: there is no such folder; a split has images/ and masks/ with equal names")
        found = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(f"{images}: holds no images")
        lacking = [path.name for path in found if not (masks / f"{path.stem}.png").is_file()]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise ValueError(f"{masks}: no {Path(lacking[0]).stem}.png for {lacking[0]}{more}")
        names = root / CLASSES_FILE
        told = names.read_text("utf-8").splitlines() if names.is_file() else ()
        return cls(tuple((path, masks / f"{path.stem}.png") for path in found), tuple(told))

    def mask(self, number: int) -> np.ndarray:
        """Returns a mask (height, width) of class numbers.

        Raises:
            ValueError: it cannot be read, or has more than one channel.
        """
        path = self.pairs[number][1]
        try:
            with import_pillow().open(path) as opened:
                mode, mask = opened.mode, np.asarray(opened)
        except OSError as error:
            raise BadImageError(f"{path}: {error}") from error
        if mode not in ("L", "P", "1"):
            raise ValueError(f"{path}: a mask has one channel of class numbers, this image is of mode {mode}")
        return mask.astype(np.uint8)

    def count_classes(self) -> int:
        """Returns how many classes there are: the names, or one more than the largest number in the masks."""
        largest = 0
        for number, (_, path) in enumerate(self.pairs):
            mask = self.mask(number)
            top = int(mask[mask != IGNORED].max(initial=0))
            if self.class_names and top >= len(self.class_names):
                count = len(self.class_names)
                raise ValueError(f"{path}: has class {top}, and {CLASSES_FILE} names {count} (0 to {count - 1})")
            largest = max(largest, top)
        return len(self.class_names) or largest + 1
