"""Attention inside windows: most blocks see a part of the grid, those that are named see all of it; ViTDet, SAM."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vit_flax.config.checks import integers, require_int, require_positive
from vit_flax.config.position import Position

if TYPE_CHECKING:
    from vit_flax.config.vit import ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows(Position):
    """Attention inside square windows of the grid, but for the blocks that are named.

    The grid is filled up to whole windows with zeros, which are attended to like all other tokens.
    """

    global_attn_indexes: tuple[int, ...] = ()  # numbers of the blocks that see the whole grid in any case

    def __post_init__(self) -> None:
        """Checks what stands by itself."""
        object.__setattr__(self, "global_attn_indexes", integers("global_attn_indexes", self.global_attn_indexes, 0))

    def check(self, config: ViTConfig) -> None:
        """Raises ValueError for prefix tokens, which have no place in a window."""
        super().check(config)
        if config.num_prefix_tokens:
            raise ValueError("windows are of patches alone: class_token=False, and no dist_token or reg_tokens")

    def window(self, index: int) -> int:
        """Returns how many patches are along a side of the windows of block `index`; 0: it sees the whole grid."""
        raise NotImplementedError

    def sees_all(self, index: int) -> bool:
        """Whether block `index` attends to the whole grid."""
        return not self.window(index)

    def representatives(self, depth: int) -> tuple[int, ...]:
        """Returns for every block the first one with the same windows."""
        sizes = [self.window(index) for index in range(depth)]
        return tuple(sizes.index(size) for size in sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualWindows(Windows):
    """Windows of one size in all blocks that have any."""

    window_size: int = 14  # patches along a side; 0: every block sees the whole grid

    def __post_init__(self) -> None:
        """Checks what stands by itself."""
        super().__post_init__()
        require_int("window_size", self.window_size, minimum=0)

    def window(self, index: int) -> int:
        """Returns how many patches are along a side of the windows of block `index`; 0: it sees the whole grid."""
        return 0 if index in self.global_attn_indexes else self.window_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeWindows(EqualWindows):
    """Windows, and what a query makes of its distance to each row and each column of keys; ViTDet, SAM."""

    use_rel_pos: bool = True  # learned vectors of each distance, by which queries are multiplied


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedWindows(EqualWindows):
    """Windows in which queries and keys are rotated by row and column; SAM 3.

    The rows and columns of the whole grid are numbered in steps so small that they end where a window's do.
    """

    rope_theta: float = 10000.0  # of the periods of rotation the longest, the shortest being one patch

    def check(self, config: ViTConfig) -> None:
        """Raises ValueError where heads are of a width that two axes cannot share."""
        super().check(config)
        require_positive("rope_theta", self.rope_theta)
        if not self.window_size:
            raise ValueError("window_size=0 leaves rows and columns without a number: it must be positive")
        if config.head_dim % 4:
            raise ValueError(f"a rotation in two axes needs heads of a width divisible by 4, got {config.head_dim}")
