"""How attention learns where a token is: what every kind of it does."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Positions:
    """The linen side of a config's `position`; this one does nothing, each other kind is a class in a file of its own.

    Parameters are the model's or the attention's that is handed in. `given` is what the model made for a block.
    """

    config: Any = None  # the model's ViTConfig

    def setup_model(self, model: Any) -> None:
        """Adds parameters that all blocks share to the model."""

    def block_inputs(self, model: Any, mask: Array | None) -> list[Any]:
        """Returns what each block is given, an array or None; `mask` (B, N) is of tokens that are no padding."""
        del mask
        return [None] * model.config.depth

    def setup_attention(self, attention: Any) -> None:
        """Adds parameters of one block to its attention."""

    def apply(self, attention: Any, q: Array, k: Array, scale: float, given: Any) -> tuple[Array, Array, Array | None]:
        """Returns queries and keys (B, H, N, E), and what is added to the logits (1, H, N, N), or None."""
        del attention, scale, given
        return q, k, None
