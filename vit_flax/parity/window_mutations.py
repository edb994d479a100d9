"""Deliberate errors of trunks with window attention: windows, relative positions, rotary embedding, neck.

Each is applied to a small transformers model of random weights: `vit-flax compare --mutate rel_pos_left_out`.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
from jax import Array

from vit_flax.models import neck, windows
from vit_flax.models.windows import RelativeWindowPositions, RotatedWindowPositions, WindowedPositions
from vit_flax.parity.small_mutation import SmallMutation
from vit_flax.parity.wrong_tensors import changed, exchanged

_APPLY, _ANGLES, _ROTATE = RelativeWindowPositions.apply, windows._angles, windows.rotate
_PARTITION, _UNPARTITION, _PAD = WindowedPositions.partition, WindowedPositions.unpartition, jnp.pad


def _unchanged(self: Any, attention: Any, q: Array, k: Array, scale: float, given: Any) -> tuple[Array, Array, None]:
    return q, k, None


def _unscaled(self: Any, attention: Any, q: Array, k: Array, scale: float, given: Any) -> Any:
    return _APPLY(self, attention, q, k, 1.0, given)


def _padding_hidden(self: Any, attention: Any, q: Array, k: Array, scale: float, given: Any) -> Any:
    """Masks the keys of the grid's padding, which must not be masked."""
    q, k, _ = _APPLY(self, attention, q, k, scale, given)
    if not self.window:
        return q, k, None
    height, width = self.config.grid_size
    there = _PARTITION(self, jnp.ones((1, height * width, 1), q.dtype))[:, None, None, :, 0]
    return q, k, jnp.log(jnp.tile(there, (len(q) // len(there), 1, 1, 1)) + 1e-30)


def _border_repeated(self: Any, x: Array) -> Array:
    with mock.patch.object(jnp, "pad", partial(_PAD, mode="edge")):
        return _PARTITION(self, x)


def _joined_by_columns(self: Any, x: Array) -> Array:
    if not self.window:
        return x
    by_window = x.reshape(-1, *self.counts, *x.shape[1:])  # as many along both sides
    return _UNPARTITION(self, by_window.swapaxes(1, 2).reshape(x.shape))


def _not_stretched(positions: RotatedWindowPositions) -> np.ndarray:
    other = positions.config.replace(window_size=positions.grid[0])
    return _ANGLES(RotatedWindowPositions(other, positions.index))


def _rows_first(positions: RotatedWindowPositions) -> np.ndarray:
    return np.concatenate(np.split(_ANGLES(positions), 2, axis=1)[::-1], axis=1)


def _in_halves(x: Array, angles: Any, half: bool) -> Array:
    return _ROTATE(x, angles, half=True)


_SAM, _VITDET, _SAM3 = "vision_encoder.layers.0", "encoder.layer.0", "layers.0"

WINDOW_MUTATIONS: dict[str, SmallMutation] = {
    m.name: m
    for m in (
        SmallMutation("rel_pos_left_out", "no relative position embeddings in attention", "sam", f"{_SAM}.attn.proj",
                      patches=((RelativeWindowPositions, "apply", _unchanged),)),
        SmallMutation("rel_pos_exchanged", "relative positions of rows and columns exchanged", "sam",
                      f"{_SAM}.attn.proj", exchanged("rel_pos_h", "rel_pos_w")),
        SmallMutation("rel_pos_reversed", "relative positions from key to query, not from query to key", "vitdet",
                      f"{_VITDET}.attention.proj", changed("rel_pos", lambda a: a[::-1].copy())),
        SmallMutation("rel_pos_scaled", "relative positions of queries that are scaled already", "sam",
                      f"{_SAM}.attn.proj", patches=((RelativeWindowPositions, "apply", _unscaled),)),
        SmallMutation("window_padding_hidden", "the padding of the last windows masked in attention", "sam",
                      f"{_SAM}.attn.proj", patches=((RelativeWindowPositions, "apply", _padding_hidden),)),
        SmallMutation("window_padding_repeated", "the last windows padded with the grid's border, not zeros", "sam",
                      f"{_SAM}.attn.qkv", patches=((WindowedPositions, "partition", _border_repeated),)),
        SmallMutation("windows_joined_by_columns", "windows joined column by column", "sam",
                      f"{_SAM}.layer_norm2:input", patches=((WindowedPositions, "unpartition", _joined_by_columns),)),
        SmallMutation("global_block_windowed", "a block of global attention attends inside windows", "sam3",
                      "layers.1.attention.o_proj:input", {"global_attn_indexes": ()}),
        SmallMutation("windowed_block_global", "a block of window attention attends to the whole grid", "sam3",
                      f"{_SAM3}.attention.o_proj:input", {"global_attn_indexes": (0, 1)}),
        SmallMutation("windows_larger", "windows one patch larger", "sam3", f"{_SAM3}.attention.o_proj:input",
                      {"window_size": 4}),
        SmallMutation("rotation_not_stretched", "rotary positions of the whole grid not scaled to a window's", "sam3",
                      "layers.1.attention.o_proj:input", patches=((windows, "_angles", _not_stretched),)),
        SmallMutation("rotation_rows_first", "rotary embedding of rows before columns", "sam3",
                      f"{_SAM3}.attention.o_proj:input", patches=((windows, "_angles", _rows_first),)),
        SmallMutation("rotation_in_halves", "rotary embedding of channels half a head apart, not neighbouring", "sam3",
                      f"{_SAM3}.attention.o_proj:input", patches=((windows, "rotate", _in_halves),)),
        SmallMutation("rotation_period", "rotary embedding with another theta", "sam3",
                      f"{_SAM3}.attention.o_proj:input", {"rope_theta": 100.0}),
        SmallMutation("positions_not_tiled", "position embeddings resized, not tiled", "sam3", "layer_norm",
                      {"pos_embed_fit": "bicubic"}),
        SmallMutation("positions_bilinear", "position embeddings resized bilinearly", "vitdet", f"{_VITDET}.norm1",
                      {"pos_embed_fit": "bilinear"}),
        SmallMutation("positions_class_row", "position embeddings one row off, as if without one of a class token",
                      "vitdet", f"{_VITDET}.norm1", changed("position_embeddings", lambda a: np.roll(a, 1, axis=1))),
        SmallMutation("positions_by_columns", "position embeddings of rows and columns exchanged", "sam",
                      f"{_SAM}:input", changed("pos_embed", lambda a: a.swapaxes(1, 2).copy())),
        SmallMutation("neck_norms_exchanged", "the neck's two norms exchanged", "sam", "features",
                      exchanged("neck.layer_norm1", "neck.layer_norm2"), "outputs"),
        SmallMutation("neck_kernel_turned", "the neck's kernel with rows and columns exchanged", "sam", "features",
                      changed("neck.conv2", lambda a: a.swapaxes(2, 3).copy()), "outputs"),
        SmallMutation("neck_epsilon", "another epsilon in the neck's norms", "sam", "features", section="outputs",
                      patches=((neck, "_EPSILON", 1e-5),)),
    )
}  # fmt: skip
