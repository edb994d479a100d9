"""How attention learns where a token is: what every kind of it does."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import numpy as np
from jaxtyping import Array

from vit_flax.config import PlainViTConfig, ViTConfig

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

    def apply(
        self, attention: nn.Module, q: Array, k: Array, scale: float, given: Array | np.ndarray | None
    ) -> tuple[Array, Array, Array | None]:
        """Returns queries and keys (B, H, N, E), and what is added to the logits (1, H, N, N), or None."""
        del attention, scale, given
        return q, k, None
