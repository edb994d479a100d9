"""Deliberate errors of trunks with stages of blocks: pooled queries, their windows, the feature pyramid.

Each is applied to a small transformers model of random weights: `vit-flax compare --mutate queries_averaged`.
"""

from __future__ import annotations

from typing import Any

from jax import Array

from vit_flax.models import staged_windows
from vit_flax.models.staged_windows import StagedWindowPositions
from vit_flax.parity.small_mutation import SmallMutation
from vit_flax.parity.wrong_tensors import changed


def _mean(x: Array, grid: tuple[int, int], stride: tuple[int, int]) -> Array:
    if stride == (1, 1):
        return x
    (height, width), (down, along) = grid, stride
    cells = x.reshape(*x.shape[:-2], height // down, down, width // along, along, x.shape[-1])
    return cells.mean((-2, -4)).reshape(*x.shape[:-2], -1, x.shape[-1])


def _in_a_row(self: Any, attention: Any, q: Array, k: Array, scale: float, given: Any) -> tuple[Array, Array, None]:
    """Pools queries that are consecutive in a row, not those of a square."""
    down, along = self.stride
    return q.reshape(*q.shape[:2], -1, down * along, q.shape[-1]).max(-2), k, None


def _unchanged(self: Any, model: Any, table: Array) -> Array:
    return table


_BLOCK = "backbone.blocks"

STAGE_MUTATIONS: dict[str, SmallMutation] = {
    m.name: m
    for m in (
        SmallMutation("queries_averaged", "average pooling of queries, not max pooling, between stages", "sam2",
                      f"{_BLOCK}.1.attn.proj:input", patches=((staged_windows, "max_pool", _mean),)),
        SmallMutation("queries_pooled_in_a_row", "queries pooled along a row, not in squares", "sam2",
                      f"{_BLOCK}.1.attn.proj:input", patches=((StagedWindowPositions, "apply", _in_a_row),)),
        SmallMutation("window_positions_left_out", "no position embeddings of windows", "sam2", f"{_BLOCK}.0:input",
                      patches=((StagedWindowPositions, "position_table", _unchanged),)),
        SmallMutation("window_positions_by_columns", "position embeddings of windows with rows and columns exchanged",
                      "sam2", f"{_BLOCK}.0:input",
                      changed("pos_embed_window", lambda a: a.swapaxes(2, 3).copy())),
        SmallMutation("stage_heads_of_others", "twice as many heads", "sam2", f"{_BLOCK}.0.attn.proj:input",
                      {"stage_heads": (2, 4), "num_heads": 2}),
        SmallMutation("pyramid_not_added", "coarser maps not added to finer ones", "sam2", "features",
                      {"pyramid_top_down": ()}, "outputs"),
    )
}  # fmt: skip
