"""Checks before a run that its images can be decoded."""

from __future__ import annotations

import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vit_flax.preprocessing.decode import CONVERTED, BadImageError, import_pillow
from vit_flax.train.data.source import DataError, Source

logger = logging.getLogger(__name__)
SAMPLE = 32  # training images that are looked at
THREADS = 16


def is_plain(data: bytes | Path) -> bool:
    """Returns whether an image's header says that it can be decoded; False: only decoding tells."""
    try:
        with import_pillow().open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            return image.mode in CONVERTED
    except Exception:  # whatever Pillow's parsers raise: decoding raises it again, and BadImageError names it
        return False


def check_images(source: Source, allowed: float) -> None:
    """Reads the header of every image, and logs those that cannot be read.

    Raises:
        DataError: they are more than the share `allowed`, or all of them.
    """
    bad = _unreadable(source, range(len(source)))
    if len(bad) > allowed * len(source) or (bad and len(bad) == len(source)):
        index, reason = next(iter(bad.items()))
        raise DataError(
            f"{source.name}: {len(bad)} of {len(source)} images cannot be read, more than data.max_bad_share "
            f"{allowed:g} allows; the first: {source.describe(index)}: {reason}"
        )
    for index, reason in bad.items():
        logger.warning("%s cannot be read and counts nowhere: %s", source.describe(index), reason)


def check_sample(source: Source) -> None:
    """Reads the headers of a few images spread over the source, which may be large.

    Raises:
        DataError: none of them can be read.
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int)).tolist()
    bad = _unreadable(source, chosen)
    if chosen and len(bad) == len(chosen):
        first = f"{source.describe(chosen[0])}: {bad[chosen[0]]}"
        raise DataError(f"{source.name}: none of {len(chosen)} images tried can be read; the first: {first}")


def _unreadable(source: Source, indices: range | list[int]) -> dict[int, str]:
    def fault(index: int) -> str | None:
        try:
            source.check(index)
        except BadImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(THREADS, 4 * (os.cpu_count() or 1))) as pool:
        faults = pool.map(fault, indices)
        return {index: said for index, said in zip(indices, faults, strict=True) if said is not None}
