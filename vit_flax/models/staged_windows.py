"""Window attention with pooled queries, and its position embedding."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_flax.models.feature_pyramid import FeaturePyramid
from vit_flax.models.placed import reshape
from vit_flax.models.precision import Precision
from vit_flax.models.windows import WindowedPositions


class StagedWindowPositions(WindowedPositions):
    """Partitions each stage's grid into windows, in which the first block of a stage may pool its queries.

    Reference: timm.models.hieradet_sam2; transformers' Sam2MultiScaleAttention; arXiv 2306.00989, 2311.05613.
    """

    @property
    def stride(self) -> tuple[int, int]:
        """Stride of the max pooling of queries along height and width."""
        position: Any = self.config.position
        return position.stride(self.index)

    def setup_model(self, model: nn.Module) -> None:
        """Adds the position embedding of one window to the model."""
        side, init = self.config.position.window_sizes[0], nn.initializers.normal(0.02)  # pyright: ignore[reportAttributeAccessIssue]
        shape = (1, side * side, self.config.embed_dim)
        model.pos_embed_window = model.param("pos_embed_window", init, shape, model.policy.params)

    def position_table(self, model: nn.Module, table: Float[Array, "1 n d"]) -> Float[Array, "1 n d"]:
        """Returns the position table with the window's embedding tiled over all windows and added."""
        (height, width), window = self.config.grid_size, model.pos_embed_window
        side = self.config.position.window_sizes[0]  # pyright: ignore[reportAttributeAccessIssue]
        repeated = jnp.tile(window.reshape(1, side, side, -1), (1, height // side, width // side, 1))
        return table + repeated.reshape(table.shape)

    def apply(
        self, attention: nn.Module, q: Array, k: Array, scale: float, given: Array | np.ndarray | None
    ) -> tuple[Array, Array, Array | None]:
        """Returns the pooled queries, and keys as they are."""
        return max_pool(q, self.grid, self.stride), k, None

    def pool(self, x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
        """Returns the tokens max-pooled as the queries are."""
        return max_pool(x, self.config.grid_before(self.index), self.stride)

    def build_neck(self, precision: Precision) -> nn.Module:
        """Returns the feature pyramid."""
        position: Any = self.config.position
        grids = tuple(self.config.grid_before(end + 1) for end in position.stage_ends)
        assert self.config.neck_chans is not None
        return FeaturePyramid(
            self.config.neck_chans, grids, position.pyramid_top_down, position.pyramid_levels, precision
        )

    def neck_reads(self) -> tuple[int, ...]:
        """Returns the numbers of the blocks whose tokens the neck reads."""
        return self.config.position.stage_ends  # pyright: ignore[reportAttributeAccessIssue]


def max_pool(x: Float[Array, "*b n d"], grid: tuple[int, int], stride: tuple[int, int]) -> Float[Array, "*b m d"]:
    """Max-pools a row-major grid of tokens with kernel and stride `stride`; cells beyond the last window are dropped.

    The gradient goes to the first of equal values, as in torch, and NaN is the largest.

    Reference: torch.nn.functional.max_pool2d(kernel_size=stride, stride=stride).
    """
    if stride == (1, 1):
        return x
    (height, width), (down, along) = grid, stride
    rows, columns, batch = height // down, width // along, x.shape[:-2]
    x = reshape(x, *batch, height, width, x.shape[-1])[..., : rows * down, : columns * along, :]
    cells = reshape(x, *batch, rows, down, columns, along, x.shape[-1])
    parts = [cells[..., :, i, :, j, :] for i in range(down) for j in range(along)]
    largest = functools.reduce(lambda a, b: jnp.where((b > a) | (b != b), b, a), parts)
    return reshape(largest, *batch, rows * columns, x.shape[-1])
