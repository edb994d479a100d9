"""Window attention with decomposed relative position embeddings or rotary position embeddings."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_flax.models.placed import as_batch_of, reshape
from vit_flax.models.position import Positions
from vit_flax.models.precision import accumulator_dtype
from vit_flax.models.rotation import rotary_frequencies, rotate


class WindowedPositions(Positions):
    """Partitions the grid into windows in all blocks but those of global attention.

    Reference: timm.models.vision_transformer_sam; transformers' VitDetModel, SamVisionEncoder and Sam3ViTModel.
    """

    @property
    def window(self) -> int:
        """Patches along a side of the block's windows; 0: there are none."""
        position: Any = self.config.position
        return position.window(self.index)

    @property
    def stride(self) -> tuple[int, int]:
        """Tokens along height and width of which attention makes one."""
        return 1, 1

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of what attends to itself: a window, or the whole grid."""
        return (self.window, self.window) if self.window else self.config.grid_before(self.index)

    @property
    def counts(self) -> tuple[int, int]:
        """Windows along height and width."""
        height, width = self.config.grid_before(self.index)
        return -(-height // self.window), -(-width // self.window)

    def partition(self, x: Float[Array, "b n d"]) -> Float[Array, "w m d"]:
        """Returns the zero-padded windows of m tokens in the batch axis, image by image and row by row."""
        if not self.window:
            return x
        side, (rows, columns), (height, width) = self.window, self.counts, self.config.grid_before(self.index)
        batch, _, chans = x.shape
        x = reshape(x, batch, height, width, chans)
        x = jnp.pad(x, ((0, 0), (0, rows * side - height), (0, columns * side - width), (0, 0)))
        x = reshape(x, batch, rows, side, columns, side, chans).transpose(0, 1, 3, 2, 4, 5)
        return reshape(x, batch * rows * columns, side * side, chans)

    def unpartition(self, x: Float[Array, "w m d"]) -> Float[Array, "b n d"]:
        """Returns the grid's tokens from the windows of `partition`, without the padding."""
        if not self.window:
            return x
        (rows, columns), (height, width) = self.counts, self.config.grid_before(self.index + 1)
        down, along = (self.window // stride for stride in self.stride)  # patches along the sides of a window now
        batch, chans = x.shape[0] // (rows * columns), x.shape[-1]
        x = reshape(x, batch, rows, columns, down, along, chans).transpose(0, 1, 3, 2, 4, 5)
        x = reshape(x, batch, rows * down, columns * along, chans)[:, :height, :width]
        return reshape(x, batch, height * width, chans)


class RelativeWindowPositions(WindowedPositions):
    """Adds decomposed relative position embeddings to the logits: a query's products with two vectors by distance.

    Reference: arXiv 2203.16527; arXiv 2112.01526, section 4.1.
    """

    def setup_attention(self, attention: nn.Module) -> None:
        """Adds the parameters rel_pos_h and rel_pos_w (2 * side - 1, head_dim), if config.use_rel_pos."""
        if self.config.use_rel_pos:
            dtype, init = attention.precision.params, nn.initializers.zeros
            height, width = ((2 * side - 1, self.config.head_dim) for side in self.grid)
            attention.rel_pos_h = attention.param("rel_pos_h", init, height, dtype)
            attention.rel_pos_w = attention.param("rel_pos_w", init, width, dtype)

    def apply(
        self, attention: nn.Module, q: Array, k: Array, scale: float, given: Array | np.ndarray | None
    ) -> tuple[Array, Array, Array | None]:
        """Returns queries and keys with more channels, whose products are the bias of the logits.

        A query's are its products with the vectors of its distance to each row and each column of keys, a key's are its
        row and column, one-hot. No bias of the logits' size is built, and every attention back end can compute it.
        """
        if not self.config.use_rel_pos:
            return q, k, None
        height, width = self.grid
        wide = accumulator_dtype(q.dtype)
        along = [
            _products(attention, q, self.grid, attention.rel_pos_h, "bnhwe,hke->bnhwk"),
            _products(attention, q, self.grid, attention.rel_pos_w, "bnhwe,wke->bnhwk"),
        ]
        places = np.concatenate([np.eye(height).repeat(width, 0), np.tile(np.eye(width), (height, 1))], axis=1)
        shape = (*k.shape[:3], height + width)
        where = jnp.broadcast_to(jnp.asarray(places, k.dtype), shape, out_sharding=as_batch_of(k, 4))
        q = jnp.concatenate([q.astype(wide), *(part / scale for part in along)], axis=-1)
        return q, jnp.concatenate([k, where], axis=-1), None


def _products(attention: Any, q: Array, grid: tuple[int, int], table: Array, spec: str) -> Array:
    """Returns a query's products (B, H, N, side) with the vectors of its distance to each row or column of keys."""
    dtype, side = attention.precision.operand_dtype(q), (len(table) + 1) // 2
    distances = np.arange(side)[:, None] - np.arange(side) + side - 1
    operands = (reshape(q, *q.shape[:2], *grid, q.shape[-1]).astype(dtype), table[distances].astype(dtype))
    wide = accumulator_dtype(q.dtype)
    out = jnp.einsum(spec, *operands, precision=attention.precision.products, preferred_element_type=wide)
    return reshape(out, *q.shape[:3], side)


class RotatedWindowPositions(WindowedPositions):
    """Rotates queries and keys by row and column in a window, or in the grid with positions scaled to a window's.

    Reference: transformers' Sam3ViTRotaryEmbedding and Sam3ViTLayer.precompute_positions.
    """

    def block_inputs(self, model: nn.Module, mask: Array | None) -> list[Array | np.ndarray | None]:
        """Returns the angles (N, E / 2) of every block, columns first."""
        cfg = model.config
        alike = cfg.position.representatives(cfg.depth)
        angles = {index: _angles(RotatedWindowPositions(cfg, index)) for index in set(alike)}
        return [angles[index] for index in alike]

    def apply(
        self, attention: nn.Module, q: Array, k: Array, scale: float, given: Array | np.ndarray | None
    ) -> tuple[Array, Array, Array | None]:
        """Returns queries and keys rotated by the angles given, neighbouring channels together."""
        assert given is not None
        # in float32 or wider: sine and cosine of far patches have no digits to lose
        q, k = (rotate(x.astype(accumulator_dtype(x.dtype)), given, half=False) for x in (q, k))
        return q, k, None


def _angles(positions: RotatedWindowPositions) -> np.ndarray:
    cfg = positions.config
    # a step is rounded to float32, and so is its product with a number
    axes = [np.arange(side, dtype=np.float32) * np.float32(cfg.window_size / side) for side in positions.grid]
    rows, columns = (axis.reshape(-1, 1).astype(np.float64) for axis in np.meshgrid(*axes, indexing="ij"))
    frequencies = rotary_frequencies(cfg.head_dim, cfg.rope_theta).astype(np.float64)
    return np.concatenate([columns * frequencies, rows * frequencies], axis=1)
