"""Early stopping."""

from __future__ import annotations

import dataclasses

from vit_flax.config.checks import require_choice, require_int, require_number

MONITORS = ("score", "loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """Early stopping: ends the run when evaluations stop improving.

    Reference: lightning.pytorch.callbacks.EarlyStopping, transformers.EarlyStoppingCallback.
    """

    patience: int = 5  # evaluations in a row without improvement
    min_delta: float = 0.0  # what counts as an improvement is more than this
    monitor: str = "score"  # top-1 accuracy, or of several labels an image the mean average precision; or 'loss'

    def __post_init__(self) -> None:
        """Checks every value."""
        require_int("early_stopping.patience", self.patience, 1)
        require_number("early_stopping.min_delta", self.min_delta)
        require_choice("early_stopping.monitor", self.monitor, MONITORS)
