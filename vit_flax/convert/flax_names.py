"""Parameters of transformers' Flax models under the names of its torch models.

transformers 4 had Flax models of its own, whose parameters are those of its torch models with `kernel`, `scale` and
`embedding` for `weight`, kernels the other way round, and slashes between the levels. With the names and axes changed
back, every layout of Hugging Face reads them.

Reference: transformers 4, modeling_flax_pytorch_utils.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from vit_flax.convert.checkpoint import Checkpoint

_TELL = re.compile(r"(.*/)?embeddings/patch_embeddings?(/projection)?/kernel")
_OWN = re.compile(r"(.*[./])?(patch_embed\.proj|tokens_to_token\.project)\.kernel")
_LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def with_torch_names(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint of transformers' Flax models under torch's names and shapes; any other as it is.

    Parameters of this library's own models have slashes where they came with dots.
    """
    if any(_OWN.fullmatch(name) for name in checkpoint.shapes):
        slashed = {name: name.replace(".", "/") for name in checkpoint.shapes}
        return checkpoint.renamed(slashed) if len(set(slashed.values())) == len(slashed) else checkpoint
    tell = next((name for name in checkpoint.shapes if _TELL.fullmatch(name)), None)
    if tell is None:
        return checkpoint
    old, shapes = {}, {}
    for name, shape in checkpoint.shapes.items():
        *levels, last = name.split("/")
        new = ".".join((*levels, _LAST.get(last, last)))
        old[new], shapes[new] = name, tuple(shape[axis] for axis in _axes(name, len(shape)))
    if len(old) != len(checkpoint.shapes):
        return checkpoint

    def read(name: str) -> np.ndarray:
        array = checkpoint.read(old[name])
        return array.transpose(_axes(old[name], array.ndim))

    dtypes = {new: checkpoint.dtypes[name] for new, name in old.items() if name in checkpoint.dtypes}
    return dataclasses.replace(checkpoint, shapes=shapes, reader=read, dtypes=dtypes)


def _axes(name: str, rank: int) -> tuple[int, ...]:
    """Returns where each of torch's axes is: HWIO -> OIHW, (in, out) -> (out, in)."""
    orders = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}
    return orders.get(rank, tuple(range(rank))) if name.endswith("/kernel") else tuple(range(rank))
