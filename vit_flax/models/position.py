"""How attention learns where a token is: what every kind of it does."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import numpy as np
from jaxtyping import Array

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.models.neck import Neck
from vit_flax.models.precision import Precision

PLAIN = PlainViTConfig()


@dataclasses.dataclass(frozen=True)
class Positions:
    """The linen side of a config's `position`; this one does nothing, each other kind is a class in a file of its own.

    Parameters are the model's or the attention's that is handed in. `given` is what the model made for a block.
    """

    config: ViTConfig = PLAIN
    index: int = 0  # the block's number, in its attention

    @property
    def is_identity(self) -> bool:
        """Whether attention is the same without it: of a subclass False, whatever it leaves out."""
        return type(self) is Positions

    def setup_model(self, model: nn.Module) -> None:
        """Adds parameters that all blocks share to the model."""

    def position_table(self, model: nn.Module, table: Array) -> Array:
        """Returns the position embedding (1, N, D) of the tokens, from the model's table."""
        del model
        return table

    def block_inputs(self, model: nn.Module, mask: Array | None) -> list[Array | np.ndarray | None]:
        """Returns what each block is given, an array or None; `mask` (B, N) is of tokens that are no padding."""
        del mask
        return [None] * model.config.depth

    def setup_attention(self, attention: nn.Module) -> None:
        """Adds parameters of one block to its attention."""

    def partition(self, x: Array) -> Array:
        """Returns tokens (B, N, D) as those (B', N', D) that attend to each other."""
        return x

    def unpartition(self, x: Array) -> Array:
        """Returns what `partition` parted, as it was."""
        return x

    def pool(self, x: Array) -> Array:
        """Returns the tokens (B, M, D) of the residual connection around an attention that pools queries."""
        return x

    def build_neck(self, precision: Precision) -> nn.Module:
        """Returns the neck after the blocks: of the last tokens, or of those of several blocks."""
        assert self.config.neck_chans is not None
        return Neck(self.config.neck_chans, self.config.grid_size, precision)

    def neck_reads(self) -> tuple[int, ...]:
        """Returns the numbers of the blocks of whose tokens the neck makes maps; none: it takes the last tokens."""
        return ()

    def apply(
        self, attention: nn.Module, q: Array, k: Array, scale: float, given: Array | np.ndarray | None
    ) -> tuple[Array, Array, Array | None]:
        """Returns queries and keys (B, H, N, E), and what is added to the logits (1, H, N, N), or None."""
        del attention, scale, given
        return q, k, None
