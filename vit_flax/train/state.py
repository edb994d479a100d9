"""The training state, and its initial value."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vit_flax.config import ModelConfig, TwoTowersConfig
from vit_flax.lora.adapters import begin, merged
from vit_flax.models import build_model
from vit_flax.train.config import ResolvedConfig, TrainConfig
from vit_flax.train.feature_distillation import PROJECTIONS, init_projections
from vit_flax.train.optimizer import make_optimizer


class TrainState(flax.struct.PyTreeNode):
    """The training state: parameters, optimiser state, moving average, and constant parameters."""

    step: Array  # int32, steps taken
    params: PyTree  # with config.lora only what is trained
    opt_state: PyTree
    ema: PyTree = None  # a tree like params
    teacher: PyTree = None  # the constant parameters of config.teacher_model
    frozen: PyTree = None  # with config.lora all other parameters of the model


def init_params(key: Array, model: ModelConfig) -> PyTree:
    """Returns random parameters, float32."""
    images = jnp.zeros((1, *model.image_size, model.in_chans), jnp.float32)
    if isinstance(model, TwoTowersConfig):
        return build_model(model).init(key, images, jnp.zeros((1, model.text.context_length), jnp.int32))["params"]
    return build_model(model).init(key, images)["params"]


def init_state(key: Array, config: ResolvedConfig, params: PyTree = None, teacher: PyTree = None) -> TrainState:
    """Returns the initial state; `params` replace random ones. Pure: may be jitted, eval_shape'd."""
    if params is None:
        params = init_params(key, config.model)
    if config.teacher_model is not None and teacher is None:
        teacher = init_params(key, config.teacher_model)
    frozen: PyTree = None
    if config.lora is not None:
        params, frozen = begin(jax.random.fold_in(key, 1), params, config.lora)
    if config.loss.feature_weight:
        assert config.teacher_model is not None
        count = len(config.loss.feature_layers)
        projections = init_projections(jax.random.fold_in(key, 2), config.image_model, config.teacher_model, count)
        params = {**params, PROJECTIONS: projections} if projections else params
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(config, params).init(params),
        # copied: a donated state must not hold one buffer twice
        ema=None if config.ema is None else jax.tree.map(jnp.copy, params),
        teacher=teacher,
        frozen=frozen,
    )


def model_params(params: PyTree, frozen: PyTree, config: TrainConfig) -> PyTree:
    """Returns the whole model's parameters from those that are trained (or their average) and the frozen ones."""
    params = {name: tree for name, tree in params.items() if name != PROJECTIONS}
    return params if config.lora is None else merged(frozen, params, config.lora)
