"""The evaluations of a run up to a step, the best of them, and early stopping."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from vit_flax.train.config import EarlyStoppingConfig


@dataclasses.dataclass
class History:
    """A run's evaluations; it is part of every checkpoint."""

    eval_split: str  # of the scores
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # scores with the highest score, and their step
    scores: dict[str, float] = dataclasses.field(default_factory=dict)  # of the last evaluation, and its step
    monitored: float | None = None  # the best value that early stopping has seen; higher is better
    waited: int = 0  # evaluations since then
    stopped: bool = False  # early stopping has ended the run
    seconds: float = 0.0  # of training, without interruptions

    @classmethod
    def restore(cls, run: Mapping[str, Any], eval_split: str, stopping: EarlyStoppingConfig | None) -> Self:
        """Restores the history from a checkpoint, of earlier versions as well.

        Scores of another split than is evaluated now are no measure of what follows, and are forgotten.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        history = cls(**{"eval_split": eval_split, **{name: run[name] for name in names & run.keys()}})
        if history.eval_split != eval_split:
            return cls(eval_split, seconds=history.seconds)
        history.stopped = stopping is not None and history.waited >= stopping.patience
        return history

    def to_dict(self) -> dict[str, object]:
        """Returns it as JSON types."""
        return dataclasses.asdict(self)

    def add(
        self, step: int, numbers: Mapping[str, float], score: str, stopping: EarlyStoppingConfig | None = None
    ) -> bool:
        """Adds an evaluation, and returns whether its `score` is the best so far."""
        self.scores = {**numbers, "step": step}
        if stopping is not None:
            value = -numbers["loss"] if stopping.monitor == "loss" else numbers[score]
            if self.monitored is None or value > self.monitored + stopping.min_delta:
                self.monitored, self.waited = value, 0
            else:
                self.waited += 1
            self.stopped = self.waited >= stopping.patience
        if numbers[score] <= self.best.get(score, -1.0):
            return False
        self.best = dict(self.scores)
        return True
