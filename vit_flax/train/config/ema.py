"""The exponential moving average of the parameters."""

from __future__ import annotations

import dataclasses

from vit_flax.config.checks import require_int, require_share
from vit_flax.config.field_types import check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of the parameters, which evaluation and export use.

    Reference: timm.utils.ModelEmaV3.
    """

    decay: float = 0.9999
    min_decay: float = 0.0
    update_after_step: int = 0  # until then the average is a copy
    warmup: bool = False  # the decay rises with the steps
    warmup_gamma: float = 1.0
    warmup_power: float = 2 / 3

    def __post_init__(self) -> None:
        """Checks every value."""
        require_share("ema.decay", self.decay)
        require_share("ema.min_decay", self.min_decay)
        require_int("ema.update_after_step", self.update_after_step, 0)
        check_types(self, "ema.")
