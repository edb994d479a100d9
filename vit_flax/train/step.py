"""The training step: pure functions of state and batch that know no I/O."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from vit_flax.config import NO_DROPS, TwoTowersConfig
from vit_flax.lora.dropout import applied_with_dropout, beside_kernels
from vit_flax.models import VisionTransformer
from vit_flax.models.kernel_sharding import mesh_in_use
from vit_flax.train.batch import Batch, normalise_batch
from vit_flax.train.config import LossConfig, ResolvedConfig, TrainConfig
from vit_flax.train.contrastive import sigmoid_contrastive, softmax_contrastive
from vit_flax.train.ema import update_ema
from vit_flax.train.feature_distillation import PROJECTIONS, feature_loss, tokens_after
from vit_flax.train.losses import batch_weights, classification_loss, distillation_loss
from vit_flax.train.mixing import mix
from vit_flax.train.modules import teacher_model, train_model
from vit_flax.train.optimizer import global_norm, learning_rate, make_optimizer, trained_mask
from vit_flax.train.state import TrainState, model_params

MAX_LOGIT_SCALE = 100.0  # of the logits of images and texts


def train_step(state: TrainState, batch: Batch, config: ResolvedConfig) -> tuple[TrainState, dict[str, Array]]:
    """Returns the state after one step, and its scalars: loss, grad_norm, learning_rate.

    What is random follows from config.seed and state.step alone. `config` is meant to be bound before jit:
    `jax.jit(partial(train_step, config=config), donate_argnums=0)`.
    """
    mix_key, drop_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
    with jax.named_scope("images"):
        images, labels = normalise_batch(batch["image"], config), batch["label"]
        if config.mixing.mixes or config.mixing.erasing_prob:
            images, labels = mix(mix_key, images, labels, config.model.num_classes, config.mixing)
    weights = batch_weights(labels, config.loss)
    trained = trained_mask(config, state.params)

    def loss_of(params: PyTree, images: Array, labels: Array, key: Array) -> Array:
        # frozen parameters have no gradient
        params = jax.tree.map(lambda p, is_trained: p if is_trained else lax.stop_gradient(p), params, trained)
        if config.lora is not None and config.lora.dropout:
            params = beside_kernels(state.frozen, params, config.lora, config.scan)
            with applied_with_dropout(config.lora.dropout):
                return compute_loss(params, state.teacher, images, labels, key, config, weights)
        projections = params.get(PROJECTIONS)
        params = model_params(params, state.frozen, config)
        return compute_loss(params, state.teacher, images, labels, key, config, weights, projections)

    loss, gradients = accumulate(loss_of, state.params, images, labels, drop_key, config.accumulation)
    with jax.named_scope("optimizer"):
        updates, opt_state = make_optimizer(config, state.params).update(gradients, state.opt_state, state.params)
        params: PyTree = clip_logit_scale(optax.apply_updates(state.params, updates), config)
    step = state.step + 1
    with jax.named_scope("ema"):
        ema = state.ema if config.ema is None else update_ema(config.ema, state.ema, params, step)
    scalars = {
        "loss": loss,
        "grad_norm": global_norm(gradients),
        "learning_rate": jnp.asarray(learning_rate(config)(state.step)),
    }
    return state.replace(step=step, params=params, opt_state=opt_state, ema=ema), scalars


def clip_logit_scale(params: PyTree, config: TrainConfig) -> PyTree:
    """Clamps the logits' scale of softmax contrastive training to 1..100; other parameters are returned as they are.

    Reference: arXiv 2103.00020, section 2.5; open_clip_train.train.
    """
    if config.loss.name != "contrastive":
        return params
    return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, math.log(MAX_LOGIT_SCALE))}


def compute_loss(
    params: PyTree,
    teacher: PyTree,
    images: Float[Array, "b h w c"],
    labels: Array,
    key: Array,
    config: TrainConfig,
    weights: Float[Array, " k"] | None = None,
    projections: PyTree = None,
) -> Float[Array, ""]:
    """Computes the loss of normalised images.

    Args:
        params: of the model.
        teacher: parameters of the teacher.
        images: normalised.
        labels: integers (B,) or probabilities (B, K).
        key: of what is left out at random.
        config: of the run.
        weights: the classes'.
        projections: of the student's features to the teacher's width, where these differ.
    """
    numbers: LossConfig = config.loss
    is_distilled = numbers.distillation != "none"
    is_random = config.drop != NO_DROPS or (config.lora is not None and config.lora.dropout > 0)
    rngs = {"dropout": key} if is_random else {}
    if isinstance(config.model, TwoTowersConfig):
        return _pair_loss(params, images, labels, rngs, config)
    method = "both_heads" if is_distilled else "__call__"
    run = partial(_run, images=images, with_features=numbers.feature_weight > 0)
    model: Any = train_model(config)
    logits, found = run(model, params, rngs=rngs, layers=numbers.feature_layers, method=method)
    if not (is_distilled or numbers.feature_weight):
        return classification_loss(logits, labels, numbers, weights)
    assert config.teacher_model is not None
    teacher_layers = numbers.teacher_layers or numbers.feature_layers
    taught, targets = run(teacher_model(config), teacher, layers=teacher_layers)
    if is_distilled:
        own = classification_loss(logits[0], labels, numbers, weights)
        distilled = distillation_loss(logits[1], taught, numbers.distillation, numbers.distillation_tau)
        loss = own * (1 - numbers.distillation_alpha) + distilled * numbers.distillation_alpha
    else:
        loss = classification_loss(logits, labels, numbers, weights)
    if numbers.feature_weight:
        both_have = config.model.class_token and config.teacher_model.class_token
        loss += numbers.feature_weight * feature_loss(found, targets, projections, both_have)
    return loss


def _run(
    model: VisionTransformer,
    params: PyTree,
    images: Array,
    with_features: bool,
    layers: tuple[int, ...],
    method: str = "__call__",
    rngs: dict[str, Array] | None = None,
) -> tuple[Any, Any]:
    """Returns a method's output and, with features, the tokens after blocks."""
    apply = partial(model.apply, {"params": params}, images, rngs=rngs)
    if not with_features:
        return apply(method=method), None
    finish = VisionTransformer.distilled if method == "both_heads" else VisionTransformer.classify
    return apply(layers, finish, method=tokens_after)  # pyright: ignore[reportReturnType]


def _pair_loss(params: PyTree, images: Array, tokens: Array, rngs: dict[str, Array], config: TrainConfig) -> Array:
    """Returns the contrastive loss of a batch, which may be sharded over the mesh in use."""
    model = train_model(config)
    embeddings: Any = model.apply({"params": params}, images, rngs=rngs, method="encode_images")
    texts: Any = model.apply({"params": params}, tokens, rngs=rngs, method="encode_texts")
    scale = jnp.exp(params["logit_scale"])
    if config.loss.name == "contrastive":
        return softmax_contrastive(embeddings, texts, scale)
    return sigmoid_contrastive(embeddings, texts, scale, params["logit_bias"], mesh_in_use())


def accumulate(
    loss_of: Callable[[PyTree, Array, Array, Array], Array],
    params: PyTree,
    images: Array,
    labels: Array,
    key: Array,
    parts: int,
) -> tuple[Array, PyTree]:
    """Accumulates loss and gradients over the microbatches of a batch.

    Args:
        loss_of: (params, images, labels, key) -> the mean loss.
        params: what the gradients are of.
        images: (B, ...).
        labels: (B, ...).
        key: of what is random; each of several parts takes its own, folded in from this one.
        parts: how many; divides B.
    """
    if parts == 1:
        return jax.value_and_grad(loss_of)(params, images, labels, key)

    def cut(x: Array) -> Array:
        # every microbatch takes strided rows, so that each device keeps its own
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        images, labels, index = part
        one = jax.value_and_grad(loss_of)(params, images, labels, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, one), None

    shapes = jax.eval_shape(jax.value_and_grad(loss_of), params, images, labels, key)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = lax.scan(add, zero, (cut(images), cut(labels), jnp.arange(parts)))
    return jax.tree.map(lambda leaf: leaf / parts, total)
