"""Window attention in stages, between which tokens become fewer and wider; Hiera, SAM 2."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from vit_flax.config.checks import Pair, integers, pair, require_int
from vit_flax.config.windows import Windows

if TYPE_CHECKING:
    from vit_flax.config.vit import ViTConfig

BLOCK = "multi_scale"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagedWindows(Windows):
    """Window attention in several stages of blocks, each with its own width, heads and window size.

    The first block of a stage projects tokens to its width. In the stages that pool, it attends inside the windows of
    the stage before, with the largest of each `query_stride` queries: that many times fewer tokens leave it. The table
    of positions is the sum of `pos_embed`, resized to the grid, and a table of one window, repeated in all windows.

    With `neck_chans` the neck is a feature pyramid: each stage's tokens are projected to so many channels, and those
    of coarser stages added to finer ones.
    """

    stages: tuple[int, ...] = (1, 2, 7, 2)  # number of blocks of each stage
    stage_dims: tuple[int, ...] = (96, 192, 384, 768)  # width of each stage's tokens; embed_dim is the first
    stage_heads: tuple[int, ...] = (1, 2, 4, 8)  # heads of each stage; num_heads is the first
    window_sizes: tuple[int, ...] = (8, 4, 14, 7)  # patches along a side of each stage's windows; 0: global attention
    global_attn_indexes: tuple[int, ...] = (5, 7, 9)
    query_pools: int = 3  # number of stages that pool queries, after the first
    query_stride: Pair = (2, 2)
    pyramid_top_down: tuple[int, ...] = (2, 3)  # stages to whose maps the next stage's upsampled map is added
    pyramid_levels: int = 3  # number of the pyramid's output maps, from the first stage on; the last is the features

    spared: ClassVar[tuple[str, ...]] = ("pos_embed_window",)
    stem: ClassVar[tuple[str, ...]] = ("pos_embed_window",)
    blocks: ClassVar[tuple[str, ...]] = (BLOCK,)
    repeats: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Checks what stands by itself."""
        super().__post_init__()
        lowest = {"stages": 1, "stage_dims": 1, "stage_heads": 1, "window_sizes": 0, "pyramid_top_down": 0}
        for name, minimum in lowest.items():
            object.__setattr__(self, name, integers(name, getattr(self, name), minimum))
        object.__setattr__(self, "query_stride", pair("query_stride", self.query_stride))
        counts = {name: len(getattr(self, name)) for name in ("stages", "stage_dims", "stage_heads", "window_sizes")}
        if len(set(counts.values())) != 1:
            raise ValueError(f"stages, stage_dims, stage_heads and window_sizes must be as many, got {counts}")
        for dim, heads in zip(self.stage_dims, self.stage_heads, strict=True):
            if dim % heads:
                raise ValueError(f"stage_dims {dim} is not divisible by its stage_heads {heads}")
        require_int("query_pools", self.query_pools, minimum=0)
        require_int("pyramid_levels", self.pyramid_levels, minimum=1)
        for name in ("query_pools", "pyramid_levels"):
            if getattr(self, name) > len(self.stages) - (name == "query_pools"):
                raise ValueError(f"{name}={getattr(self, name)} is too much for {len(self.stages)} stages")
        if self.pyramid_top_down and max(self.pyramid_top_down) >= len(self.stages):
            raise ValueError(f"pyramid_top_down {self.pyramid_top_down} names no stage of {len(self.stages)}")

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Number of each stage's last block."""
        return tuple(sum(self.stages[: stage + 1]) - 1 for stage in range(len(self.stages)))

    def stage(self, index: int) -> int:
        """Returns the stage that block `index` is of; -1 is before the first block."""
        return sum(end < index for end in self.stage_ends)

    def is_first(self, index: int) -> bool:
        """Whether block `index` is the first of a stage after the first stage."""
        return index > 0 and self.stage(index) != self.stage(index - 1)

    def stride(self, index: int) -> Pair:
        """Returns the pooling stride of block `index` along height and width."""
        pools = self.is_first(index) and self.stage(index) <= self.query_pools
        return self.query_stride if pools else (1, 1)

    def window(self, index: int) -> int:
        """Returns how many patches are along a side of the windows of block `index`; 0: it sees the whole grid."""
        own = self.window_sizes[self.stage(index - 1) if index else 0]  # of the grid that it is given
        return 0 if index in self.global_attn_indexes else own

    def heads(self, config: ViTConfig, index: int) -> int:
        """Returns the heads of block `index`."""
        return self.stage_heads[self.stage(index)]

    def dim_before(self, config: ViTConfig, index: int) -> int:
        """Returns the width of the tokens that block `index` is given, or leave the last for its number."""
        return self.stage_dims[self.stage(index - 1) if index else 0]

    def grid_before(self, config: ViTConfig, index: int) -> Pair:
        """Returns the patches along height and width that block `index` is given, or leave the last for its number."""
        height, width = config.grid_size
        for before in range(index):
            rows, columns = self.stride(before)
            height, width = height // rows, width // columns
        return height, width

    def feature_level(self, config: ViTConfig) -> int:
        """Returns the number of the block before which tokens have the grid of the features that leave the model."""
        return config.depth if config.neck_chans is None else self.stage_ends[self.pyramid_levels - 1] + 1

    def representatives(self, depth: int) -> tuple[int, ...]:
        """Returns for every block the first one with the same widths and windows."""
        kinds = [(self.stage(i), self.is_first(i), self.window(i)) for i in range(depth)]
        return tuple(kinds.index(kind) for kind in kinds)

    def check(self, config: ViTConfig) -> None:
        """Raises ValueError where stages do not fit the rest of the config, or tokens not in windows."""
        super().check(config)
        told = {"depth": sum(self.stages), "embed_dim": self.stage_dims[0], "num_heads": self.stage_heads[0]}
        sources = {"depth": "the sum of stages", "embed_dim": "stage_dims' first", "num_heads": "stage_heads' first"}
        for name, value in told.items():
            if getattr(config, name) != value:
                raise ValueError(f"{name}={getattr(config, name)} must be {sources[name]}, {value}")
        if config.pos_embed != "learned" or config.pos_embed_grid is None:
            raise ValueError("StagedWindows needs pos_embed='learned' and pos_embed_grid, which is resized to the grid")
        side = self.window_sizes[0]
        if not side or any(size % side for size in config.grid_size):
            raise ValueError(
                f"a grid of {_by(config.grid_size)} is not divided by the first stage's windows of {side}: "
                "the table of one window is repeated in all"
            )
        for index in range(config.depth):
            if self.stride(index) != (1, 1):
                self._check_pooled(config, index)
        if config.neck_chans is not None:
            self._check_pyramid(config)

    def _check_pooled(self, config: ViTConfig, index: int) -> None:
        """Raises ValueError where the windows of pooled queries are no windows of the grid that leaves the block."""
        if self.dim_before(config, index) == self.dim_before(config, index + 1):
            raise ValueError(f"block {index} pools queries, and so must be of another width than the stage before it")
        side, grid, left = self.window(index), self.grid_before(config, index), self.grid_before(config, index + 1)
        if not side:
            raise ValueError(f"block {index} pools queries inside windows: it cannot see the whole grid")
        for size, pooled, stride in zip(grid, left, self.stride(index), strict=True):
            if not (pooled and side // stride) or -(-size // side) != -(-pooled // (side // stride)):
                raise ValueError(
                    f"block {index} pools queries of a {_by(grid)} grid in windows of {side}, which leaves no whole "
                    "number of windows: other sizes of image or windows do"
                )

    def _check_pyramid(self, config: ViTConfig) -> None:
        """Raises ValueError where a feature map is not twice as large as the coarser one that is added to it."""
        require_int("neck_chans", config.neck_chans, minimum=1)
        grids = [self.grid_before(config, end + 1) for end in self.stage_ends]
        for level in self.pyramid_top_down:
            if level + 1 < len(grids) and grids[level] != tuple(2 * size for size in grids[level + 1]):
                raise ValueError(
                    f"the neck adds stage {level + 1}'s grid of {_by(grids[level + 1])}, enlarged twice, to one of "
                    f"{_by(grids[level])}: other sizes of image do"
                )


def _by(grid: Pair) -> str:
    return f"{grid[0]}x{grid[1]}"
