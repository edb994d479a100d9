"""Relative position bias, added to the logits by the offset of query and key in the grid."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_flax.config import ViTConfig
from vit_flax.models.position import Positions
from vit_flax.models.precision import Precision


def relative_positions(grid_size: tuple[int, int]) -> np.ndarray:
    """Returns the table's row for every query (first axis) and key, the class token first.

    The rows are those of the (2 H - 1) x (2 W - 1) steps from key to query, then three: class token to patch, patch to
    class token, class token to itself.

    Reference: timm.models.beit.gen_relative_position_index.
    """
    height, width = grid_size
    rows, columns = (axis.reshape(-1) for axis in np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    down, right = (axis[:, None] - axis for axis in (rows, columns))
    last = relative_rows(grid_size) - 1
    index = np.full((height * width + 1,) * 2, last)
    index[1:, 1:] = (down + height - 1) * (2 * width - 1) + right + width - 1
    index[0, 1:], index[1:, 0] = last - 2, last - 1
    return index


def relative_rows(grid_size: tuple[int, int]) -> int:
    """Returns how many rows a table has."""
    return (2 * grid_size[0] - 1) * (2 * grid_size[1] - 1) + 3


class RelativePositionBias(nn.Module):
    """Looks up the bias of every head, query and key.

    Reference: timm.models.beit.RelativePositionBias; transformers' BeitRelativePositionBias.
    """

    grid_size: tuple[int, int]
    num_heads: int
    precision: Precision = Precision()

    @nn.compact
    def __call__(self) -> Float[Array | np.ndarray, "1 h n n"]:
        """Returns the biases."""
        shape = (relative_rows(self.grid_size), self.num_heads)
        table = self.param("relative_position_bias_table", nn.initializers.zeros, shape, self.precision.params)
        return table[relative_positions(self.grid_size)].transpose(2, 0, 1)[None]


class RelativePositions(Positions):
    """Adds biases of the block's own table, of the model's shared one, or of both to the logits.

    Reference: timm.models.beit.Attention and Beit; transformers' BeitModel; arXiv 2106.08254.
    """

    def setup_model(self, model: nn.Module) -> None:
        """Adds the table that all blocks share, if there is one."""
        if model.config.shared_rel_pos_bias:
            model.rel_pos_bias = _table(model.config, model.policy)

    def block_inputs(self, model: nn.Module, mask: Array | None) -> list[Array | np.ndarray | None]:
        """Returns the shared bias, looked up once, for each block."""
        shared = model.rel_pos_bias() if model.config.shared_rel_pos_bias else None
        return [shared] * model.config.depth

    def setup_attention(self, attention: nn.Module) -> None:
        """Adds the block's own table, if it has one."""
        if self.config.rel_pos_bias:
            attention.rel_pos_bias = _table(self.config, attention.precision)

    def apply(
        self, attention: nn.Module, q: Array, k: Array, scale: float, given: Array | np.ndarray | None
    ) -> tuple[Array, Array, Array | None]:
        """Returns queries and keys as they are, and the bias."""
        shared = None if given is None else jnp.asarray(given)
        if not self.config.rel_pos_bias:
            return q, k, shared
        own = attention.rel_pos_bias()
        return q, k, own if shared is None else own + shared


def _table(config: ViTConfig, precision: Precision) -> RelativePositionBias:
    return RelativePositionBias(config.grid_size, config.num_heads, precision)
