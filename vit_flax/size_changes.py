"""How a parameter of another size comes to the model's: values that a reading holds, and that say what they do."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from vit_flax.models.resample import Grid, resize_patch_embed, resize_pos_embed, resize_rel_pos, resize_rel_pos_bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Change:
    """How a parameter comes from the checkpoint's size to the model's."""

    old: Grid
    new: Grid
    mode: str
    stored_shape: tuple[int, ...]  # of the whole parameter

    def __str__(self) -> str:
        """Says it in a few words."""
        return f"{by(self.old)} -> {by(self.new)}, {self.mode}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize(_Change):
    """A table's way from the checkpoint's grid of patches to the model's."""

    num_prefix_tokens: int

    def __call__(self, table: ArrayLike) -> np.ndarray:
        """Returns the table resized, computed in float64 whatever its dtype."""
        return resize_pos_embed(np.asarray(table), self.old, self.new, self.num_prefix_tokens, self.mode)


class PatchResize(_Change):
    """A patch kernel's way from the checkpoint's patch size to the model's."""

    def __call__(self, kernel: ArrayLike) -> np.ndarray:
        """Returns the kernel resized, computed in float64 whatever its dtype."""
        return resize_patch_embed(np.asarray(kernel), self.new, self.mode)


class RelPosBiasResize(_Change):
    """A relative position bias table's way from the checkpoint's grid of patches to the model's."""

    def __call__(self, table: ArrayLike) -> np.ndarray:
        """Returns the table resized, computed in float64 whatever its dtype."""
        return resize_rel_pos_bias(np.asarray(table), self.old, self.new, self.mode)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelPosResize:
    """The way of a relative position embedding along one axis to the rows that the model has."""

    rows: int
    stored_shape: tuple[int, ...]

    def __call__(self, table: ArrayLike) -> np.ndarray:
        """Returns the table resized, computed in float64 whatever its dtype."""
        return resize_rel_pos(np.asarray(table), self.rows)

    def __str__(self) -> str:
        """Says it in a few words."""
        return f"{self.stored_shape[0]} -> {self.rows} distances, linearly"


class ChannelChange(_Change):
    """A patch kernel's way from three channels to the model's."""

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Returns the kernel for one channel, the sum, or for more, repeated and scaled to the same sum.

        Reference: timm.models.adapt_input_conv.
        """
        chans = self.new[1]
        if chans == 1:
            return array.sum(axis=2, keepdims=True)
        return np.take(array, np.arange(chans) % array.shape[2], axis=2) * np.asarray(3 / chans, array.dtype)

    def __str__(self) -> str:
        """Says it in a few words."""
        return f"{self.old[1]} -> {self.new[1]} channels, {self.mode}"


def by(grid: Grid) -> str:
    """Returns a grid's sides as messages have them."""
    return f"{grid[0]}x{grid[1]}"
