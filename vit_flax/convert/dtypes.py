"""float64 tensors, which JAX holds only with jax_enable_x64."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection

import ml_dtypes
import numpy as np

from vit_flax.convert.checkpoint import Checkpoint

_SHOWN = 5


def settled(checkpoint: Checkpoint) -> Checkpoint:
    """Casts a few float64 tensors, mostly tables computed in NumPy, to the dtype of the others.

    Where half of them or more are float64 that is what they are meant to be.
    """
    wide = [name for name, dtype in checkpoint.dtypes.items() if dtype == "float64"]
    others = Counter(dtype for dtype in checkpoint.dtypes.values() if "float" in dtype and dtype != "float64")
    if not wide or len(wide) >= others.total():
        return checkpoint
    usual = others.most_common(1)[0][0]
    told = ", ".join(wide[:_SHOWN]) + (" ..." if len(wide) > _SHOWN else "")
    return _cast(checkpoint, wide, usual, f"in float64 among tensors in {usual}, and read in {usual}: {told}")


def in_float32(checkpoint: Checkpoint) -> Checkpoint:
    """Casts float64 tensors to float32, for whoever computes in float32 anyway."""
    wide = [name for name, dtype in checkpoint.dtypes.items() if dtype == "float64"]
    if not wide:
        return checkpoint
    return _cast(checkpoint, wide, "float32", f"its tensors are float64 ({len(wide)} of them): read in float32")


def _cast(checkpoint: Checkpoint, names: Collection[str], dtype: str, note: str) -> Checkpoint:
    narrow = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    chosen = frozenset(names)

    def read(name: str) -> np.ndarray:
        array = checkpoint.read(name)
        return array.astype(narrow) if name in chosen else array

    dtypes = {name: dtype if name in chosen else old for name, old in checkpoint.dtypes.items()}
    return dataclasses.replace(checkpoint, reader=read, dtypes=dtypes, notes=(*checkpoint.notes, note))
