"""Rates of dropout and stochastic depth."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropRates:
    """Rates of dropout and stochastic depth; they are no part of the architecture, and 0 costs nothing.

    They act only where `apply` is given a key: `rngs={"dropout": key}`. Names are timm's.
    """

    drop_path_rate: float = 0.0  # stochastic depth of the last block, per image; rises linearly from 0
    attn_drop_rate: float = 0.0  # of the attention weights
    proj_drop_rate: float = 0.0  # after each linear layer of the attention's output and of the MLP
    pos_drop_rate: float = 0.0  # of the tokens after positions are added
    drop_rate: float = 0.0  # of the pooled features before the head

    def __post_init__(self) -> None:
        """Checks every value."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"{field.name} must be at least 0 and less than 1, got {value!r}")

    def block_rates(self, depth: int) -> tuple[float, ...]:
        """Returns the stochastic-depth rate of each of `depth` blocks."""
        return tuple(self.drop_path_rate * i / max(1, depth - 1) for i in range(depth))


# no dropout, no stochastic depth
NO_DROPS = DropRates()
