"""The frozen description of a training run: a file for each part, `run.py` for the whole."""

from vit_flax.train.config.augmentation import AugmentConfig, MixingConfig
from vit_flax.train.config.data import DataConfig
from vit_flax.train.config.early_stopping import EarlyStoppingConfig
from vit_flax.train.config.ema import EmaConfig
from vit_flax.train.config.loss import LossConfig
from vit_flax.train.config.mesh import MeshConfig
from vit_flax.train.config.optimizer import OptimizerConfig, ScheduleConfig
from vit_flax.train.config.run import ResolvedConfig, TrainConfig, config_from_dict, config_from_json

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EarlyStoppingConfig",
    "EmaConfig",
    "LossConfig",
    "MeshConfig",
    "MixingConfig",
    "OptimizerConfig",
    "ResolvedConfig",
    "ScheduleConfig",
    "TrainConfig",
    "config_from_dict",
    "config_from_json",
]
