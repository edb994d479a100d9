"""The optimiser and the learning-rate schedule."""

from __future__ import annotations

import dataclasses

from vit_flax.config.checks import require_choice, require_int, require_number, require_positive, require_share
from vit_flax.config.field_types import Rules, check_types
from vit_flax.train.config.nested import freeze_lists

OPTIMIZERS = ("adamw", "lamb", "muon", "sgd")
DECAYS = ("reference", "matrices")
SCHEDULES = ("cosine", "constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser and its hyperparameters.

    `decay` says what weight decay applies to: 'reference' all but prefix tokens and positions, as the tutorial;
    'matrices' spares biases, norms and whatever has one axis as well, as timm; or ordered (pattern, bool) rules.

    `freeze` and `train` are patterns of whole paths: train=('.*/bias', 'head/.*') trains the biases and the head alone,
    as BitFit does, train=('.*norm[^/]*/.*', 'head/.*') the norms.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3  # the peak's
    weight_decay: float = 0.05
    decay: str | Rules = "matrices"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9  # of sgd, and of muon
    nesterov: bool = False
    clip_norm: float | None = None  # the gradient's global norm
    layer_decay: float | None = None  # layer-wise learning-rate decay: factor from a block to the one below
    freeze: tuple[str, ...] = ()  # patterns of frozen parameters
    train: tuple[str, ...] = ()  # patterns of the only parameters trained; () means all that freeze leaves

    def __post_init__(self) -> None:
        """Checks every value."""
        freeze_lists(self)
        require_choice("optimizer.name", self.name, OPTIMIZERS)
        if isinstance(self.decay, str):
            require_choice("optimizer.decay", self.decay, DECAYS)
        for name in ("learning_rate", "weight_decay", "eps", "momentum", "b1", "b2"):
            require_number(f"optimizer.{name}", getattr(self, name))
        for name in ("b1", "b2", "momentum"):
            require_share(f"optimizer.{name}", getattr(self, name), one=False)
        for name in ("clip_norm", "layer_decay"):
            if getattr(self, name) is not None:
                require_positive(f"optimizer.{name}", getattr(self, name))
        for name in ("freeze", "train"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        check_types(self, "optimizer.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning-rate schedule, in shares of the peak."""

    name: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None  # instead of warmup_epochs; a resolved config has it
    warmup_start: float = 0.0  # share of the peak at step 0
    final: float = 0.0  # share of the peak that the cosine ends at

    def __post_init__(self) -> None:
        """Checks every value."""
        require_choice("schedule.name", self.name, SCHEDULES)
        require_number("schedule.warmup_epochs", self.warmup_epochs)
        if self.warmup_steps is not None:
            require_int("schedule.warmup_steps", self.warmup_steps, 0)
        require_share("schedule.warmup_start", self.warmup_start)
        require_share("schedule.final", self.final)
        check_types(self, "schedule.")
