"""Changes of a parameter's size from the checkpoint's to the model's: values of a reading that describe themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from vit_flax.models.resample import Grid, resize_patch_embed, resize_pos_embed, resize_rel_pos, resize_rel_pos_bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Change:
    """The resize of a parameter from the checkpoint's size to the model's."""

    old: Grid
    new: Grid
    mode: str
    stored_shape: tuple[int, ...]  # of the whole parameter

    def __str__(self) -> str:
        """Says it in a few words."""
        return f"{by(self.old)} -> {by(self.new)}, {self.mode}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize(_Change):
    """The resize of a position table from the checkpoint's grid of patches to the model's."""

    num_prefix_tokens: int

    def __call__(self, table: ArrayLike) -> np.ndarray:
        """Returns the table resized, computed in float64 whatever its dtype."""
        return resize_pos_embed(np.asarray(table), self.old, self.new, self.num_prefix_tokens, self.mode)


class PatchResize(_Change):
    """The resize of a patch kernel from the checkpoint's patch size to the model's."""

    def __call__(self, kernel: ArrayLike) -> np.ndarray:
        """Returns the kernel resized, computed in float64 whatever its dtype."""
        return resize_patch_embed(np.asarray(kernel), self.new, self.mode)


class RelPosBiasResize(_Change):
    """The resize of a relative position bias table from the checkpoint's grid of patches to the model's."""

    def __call__(self, table: ArrayLike) -> np.ndarray:
        """Returns the table resized, computed in float64 whatever its dtype."""
        return resize_rel_pos_bias(np.asarray(table), self.old, self.new, self.mode)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelPosResize:
    """The resize of a relative position embedding along one axis to the model's number of rows."""

    rows: int
    stored_shape: tuple[int, ...]

    def __call__(self, table: ArrayLike) -> np.ndarray:
        """Returns the table resized, computed in float64 whatever its dtype."""
        return resize_rel_pos(np.asarray(table), self.rows)

    def __str__(self) -> str:
        """Says it in a few words."""
        return f"{self.stored_shape[0]} -> {self.rows} distances, linearly"


class ChannelChange(_Change):
    """The change of a patch kernel from three channels to the model's."""

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Returns the kernel summed to one channel, or repeated to more channels and scaled to the same sum.

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
    """Formats a grid for messages: 14x14."""
    return f"{grid[0]}x{grid[1]}"
