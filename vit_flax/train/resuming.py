"""Whether a run may be resumed: which fields of its config may differ, and what to do where others do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_flax.train.config import ResolvedConfig, TrainConfig
from vit_flax.train.config.nested import build

# fields that do not change what is computed: a run may be resumed with other values
_FREE = {"mesh", "sharding", "eval_every", "checkpoint_every", "keep_checkpoints", "log_every", "peak_flops", "out",
         "export_layout", "remat", "scan", "early_stopping", "steps_per_epoch", "data.eval_split",
         "data.eval_batch_size", "data.path", "data.workers", "data.threads", "data.prefetch"}  # fmt: skip
_OF_INIT = ("init_layout", "init_config", "init_entry")
_SHOWN = 8


def stored_config(values: Mapping[str, object]) -> TrainConfig:
    """Returns the config of a checkpoint, with or without steps_per_epoch, which early versions did not store."""
    return build(ResolvedConfig if "steps_per_epoch" in values else TrainConfig, values)


def check_same_run(old: TrainConfig, new: TrainConfig, step: int = 0) -> None:
    """Raises ValueError when a checkpoint's config, after `step` steps, describes another computation than this one.

    More or fewer steps are the same run where the learning rate of a step does not depend on their number.
    """
    flat_old, flat_new = _flatten(old.to_dict()), _flatten(new.to_dict())
    differing = [
        name
        for name in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(name) != flat_new.get(name) and name not in _FREE and name.split(".")[0] not in _FREE
    ]
    longer = ""
    if "steps" in differing and new.steps is not None:
        if new.schedule.name == "constant" and new.steps >= step:
            differing.remove("steps")
        elif new.schedule.name == "constant":
            longer = f"; {step} steps are done already"
        else:
            longer = f"; the {new.schedule.name} schedule ends with the steps, so that every step's rate would differ"
    if differing:
        shown = "; ".join(
            f"{name} was {flat_old.get(name)!r} and is {flat_new.get(name)!r}" for name in differing[:_SHOWN]
        )
        # what tells of the weights that the run began with tells nothing of these
        told = [f" --set {name}=None" for name in _OF_INIT if getattr(new, name) is not None]
        raise ValueError(
            f"the folder {new.out} holds another run: {shown}{longer}; take another folder (--out), and to go on from "
            f"these weights also --set init_from={new.out}/final (or best){''.join(told)}"
        )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
