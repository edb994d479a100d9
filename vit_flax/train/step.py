"""The training step: pure functions of state and batch that know no I/O."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
from jaxtyping import Array

from vit_flax.models import VisionTransformer, build_model
from vit_flax.train.config import TrainConfig

Batch = dict[str, Any]  # 'image' uint8 (B, H, W, C), 'label' int32 (B,); -1 pads a batch of evaluation


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes."""

    step: Array  # int32, steps taken
    params: Any
    opt_state: Any
    ema: Any  # a tree like params, or None


def train_model(config: TrainConfig) -> VisionTransformer:
    """Returns the linen module that a config trains: its compute dtype, drop rates, remat policy and scan set."""
    raise NotImplementedError


def batch_shapes(config: TrainConfig) -> Batch:
    """Returns the shapes and dtypes of a whole batch, as jax.ShapeDtypeStruct."""
    raise NotImplementedError


def init_state(key: Array, config: TrainConfig, params: Any = None) -> TrainState:
    """Returns the state before the first step; `params` stand in for random ones. Pure: may be jitted, eval_shape'd."""
    raise NotImplementedError


def train_step(state: TrainState, batch: Batch, config: TrainConfig) -> tuple[TrainState, dict[str, Array]]:
    """Returns the state after one step, and its scalars: loss, grad_norm, learning_rate.

    What is random follows from config.seed and state.step alone. `config` is resolved (`TrainConfig.resolve`) and is
    meant to be bound before jit: `jax.jit(partial(train_step, config=config), donate_argnums=0)`.
    """
    raise NotImplementedError


def eval_step(params: Any, batch: Batch, config: TrainConfig) -> dict[str, Array]:
    """Returns sums over a batch: loss, correct, correct5, count, and confusion (K, K), label by row.

    Rows with a negative label count nowhere.
    """
    raise NotImplementedError
