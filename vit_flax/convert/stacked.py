"""Stacked parameters of scanned layers, as a tensor a block and back."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vit_flax.convert.checkpoint import Checkpoint

_KEPT = 4  # whole stacks held in memory while their rows are read: a rule takes three at most


def unstack(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    """Returns the checkpoint with `prefix/name` of shape (depth, ...) as `prefix_0/name`, `prefix_1/name` and so on."""
    rows: dict[str, tuple[str, int]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in checkpoint.shapes.items():
        if not name.startswith(f"{prefix}/") or not shape:
            shapes[name] = shape
            continue
        for i in range(shape[0]):
            row = f"{prefix}_{i}{name.removeprefix(prefix)}"
            rows[row], shapes[row] = (name, i), shape[1:]
    whole = functools.lru_cache(_KEPT)(checkpoint.read)

    def read(name: str) -> np.ndarray:
        if name not in rows:
            return checkpoint.read(name)
        stack, i = rows[name]
        return whole(stack)[i]

    return dataclasses.replace(checkpoint, shapes=shapes, reader=read)


def stack(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns `prefix_0/name`, `prefix_1/name` and so on stacked to `prefix/name`, the inverse of `unstack`."""
    pattern = re.compile(re.escape(prefix) + r"_(\d+)(/.+)")
    stacked: dict[str, np.ndarray] = {}
    blocks: dict[str, dict[int, np.ndarray]] = {}
    for name, array in tensors.items():
        if found := pattern.fullmatch(name):
            blocks.setdefault(found[2], {})[int(found[1])] = array
        else:
            stacked[name] = array
    return stacked | {prefix + name: np.stack([rows[i] for i in sorted(rows)]) for name, rows in blocks.items()}
