"""The linen modules of a run: the model in training, in evaluation, and the teacher."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from vit_flax.models import TwoTowers, VisionTransformer, build_model
from vit_flax.train.config import TrainConfig


def train_model(config: TrainConfig) -> VisionTransformer | TwoTowers:
    """Returns the module that a config trains: its compute dtype, drop rates, remat policy and scan set."""
    return build_model(config.model, **_numerics(config), drop=config.drop, remat=config.remat, scan=config.scan)


def eval_model(config: TrainConfig) -> VisionTransformer | TwoTowers:
    """Returns the module of evaluation: as in training, without dropout and rematerialisation."""
    return build_model(config.model, **_numerics(config), scan=config.scan)


def teacher_model(config: TrainConfig) -> VisionTransformer:
    """Returns the teacher's module; ValueError where the config has none."""
    if config.teacher_model is None:
        raise ValueError("a teacher needs teacher_model")
    return build_model(config.teacher_model, **_numerics(config))


def _numerics(config: TrainConfig) -> dict[str, Any]:
    precision = lax.Precision[config.matmul_precision.upper()]
    return {"dtype": jnp.bfloat16 if config.precision == "bf16" else None, "precision": precision}
