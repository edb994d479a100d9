"""Window attention: blocks attend inside windows of the grid, the named ones to all of it; ViTDet, SAM."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vit_flax.config.checks import integers, require_int, require_positive
from vit_flax.config.position import Position

if TYPE_CHECKING:
    from vit_flax.config.vit import ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows(Position):
    """Attention inside square windows of the grid, except for blocks of global attention.

    The grid is padded to whole windows with zeros, and the padding is not masked.
    """

    global_attn_indexes: tuple[int, ...] = ()  # the blocks of global attention

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
    """Window attention with decomposed relative position embeddings, which depend on the query; ViTDet, SAM."""

    use_rel_pos: bool = True  # learned vectors by distance along height and width, multiplied by the queries


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedWindows(EqualWindows):
    """Window attention with 2D rotary position embeddings; SAM 3.

    In blocks of global attention rows and columns are scaled to the range of a window's.
    """

    rope_theta: float = 10000.0  # base of the frequencies theta^(-4 i / head_dim)

    def check(self, config: ViTConfig) -> None:
        """Raises ValueError also where rope_theta or window_size is not positive, or 4 does not divide head_dim."""
        super().check(config)
        require_positive("rope_theta", self.rope_theta)
        if not self.window_size:
            raise ValueError("window_size=0 leaves rows and columns without a number: it must be positive")
        if config.head_dim % 4:
            raise ValueError(f"a rotation in two axes needs heads of a width divisible by 4, got {config.head_dim}")
