"""Training: pure step functions, one loop, and what they are configured by. Importing it loads no JAX."""

from vit_flax.train.config import (
    AugmentConfig,
    DataConfig,
    EmaConfig,
    LossConfig,
    MeshConfig,
    MixingConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    config_from_json,
)

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EmaConfig",
    "LossConfig",
    "MeshConfig",
    "MixingConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainConfig",
    "config_from_json",
]
