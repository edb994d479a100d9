"""The training step: pure functions of state and batch that know no I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from vit_flax.config import NO_DROPS, ModelConfig, TwoTowersConfig
from vit_flax.lora.adapters import begin, merged
from vit_flax.lora.dropout import applied_with_dropout, beside_kernels
from vit_flax.models import TwoTowers, VisionTransformer, build_model
from vit_flax.models.kernel_sharding import mesh_in_use
from vit_flax.train.config import LossConfig, ResolvedConfig, TrainConfig
from vit_flax.train.contrastive import sigmoid_contrastive, softmax_contrastive
from vit_flax.train.ema import update_ema
from vit_flax.train.feature_distillation import PROJECTIONS, feature_loss, init_projections, tokens_after
from vit_flax.train.losses import batch_weights, binary_cross_entropy, classification_loss, distillation_loss
from vit_flax.train.mixing import mix
from vit_flax.train.optimizer import global_norm, learning_rate, make_optimizer, trained_mask

# 'image' uint8 (B, H, W, C); 'label' int32 (B,) or, with several labels an image, int8 (B, K) of 0 and 1. -1 pads a
# batch of evaluation.
Batch = Mapping[str, Array]
MAX_LOGIT_SCALE = 100.0  # of the logits of images and texts
MAX_CONFUSION_CLASSES = 1000  # with more, eval_step returns no confusion matrix


class TrainState(flax.struct.PyTreeNode):
    """The training state: parameters, optimiser state, moving average, and constant parameters."""

    step: Array  # int32, steps taken
    params: PyTree  # with config.lora only what is trained
    opt_state: PyTree
    ema: PyTree = None  # a tree like params
    teacher: PyTree = None  # the constant parameters of config.teacher_model
    frozen: PyTree = None  # with config.lora all other parameters of the model


def train_model(config: TrainConfig) -> VisionTransformer | TwoTowers:
    """Returns the linen module that a config trains: its compute dtype, drop rates, remat policy and scan set."""
    return build_model(config.model, **_runtime(config), drop=config.drop, remat=config.remat, scan=config.scan)


def _runtime(config: TrainConfig) -> dict[str, Any]:
    precision = lax.Precision[config.matmul_precision.upper()]
    return {"dtype": jnp.bfloat16 if config.precision == "bf16" else None, "precision": precision}


def batch_shapes(config: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a whole batch, as jax.ShapeDtypeStruct."""
    size = config.data.batch_size
    images = jax.ShapeDtypeStruct((size, *config.image_size, config.model.in_chans), jnp.uint8)
    classes = config.model.num_classes
    labels = ((size, classes), jnp.int8) if config.data.multi_label else ((size,), jnp.int32)
    if isinstance(config.model, TwoTowersConfig):
        labels = ((size, config.model.text.context_length), jnp.int32)
    return {"image": images, "label": jax.ShapeDtypeStruct(*labels)}


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


def normalise_batch(images: Array, config: TrainConfig) -> Float[Array, "b h w c"]:
    """Returns images with pixels in 0..1 (or 0..255 as uint8) as the model takes them."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    mean, std = (jnp.asarray(value, images.dtype) for value in (config.data.mean, config.data.std))
    return (images - mean) / std


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
    taught, targets = run(build_model(config.teacher_model, **_runtime(config)), teacher, layers=teacher_layers)
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


def eval_step(params: PyTree, batch: Batch, config: TrainConfig) -> dict[str, Array]:
    """Returns sums over a batch: loss, correct, correct5, count, and confusion (K, K), label by row.

    Rows with a negative label count nowhere. The loss is the cross-entropy, whatever is trained with. With several
    labels an image it is each class's own, and instead of what is correct there are the rows' `logits` and `labels`,
    float32 and int8 (B, K): what ranks the images of an evaluation needs all of them.
    """
    classes = config.model.num_classes
    if isinstance(config.model, TwoTowersConfig):
        return _embed_pairs(params, batch, config)
    model = build_model(config.model, **_runtime(config), scan=config.scan)
    logits: Any = model.apply({"params": params}, normalise_batch(batch["image"], config))
    counts = batch["label"] >= 0
    labels = jnp.maximum(batch["label"], 0)
    if config.data.multi_label:
        logits = logits.astype(jnp.float32)
        counts = counts.all(-1)
        losses = jax.vmap(lambda own, hot: binary_cross_entropy(own[None], hot[None]))(logits, labels)
        sums = {"loss": jnp.where(counts, losses, 0).sum(), "count": counts.sum()}
        return sums | {"logits": logits, "labels": jnp.where(counts[:, None], labels, -1)}
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    # ties go to the first, as in argmax
    rank = ((logits > own) | ((logits == own) & (jnp.arange(classes) < labels[:, None]))).sum(-1)
    sums = {
        "loss": jnp.where(counts, losses, 0).sum(),
        "correct": (counts & (rank < 1)).sum(),
        "correct5": (counts & (rank < 5)).sum(),
        "count": counts.sum(),
    }
    if classes <= MAX_CONFUSION_CLASSES:
        confusion = jnp.zeros((classes, classes), jnp.int32)
        sums["confusion"] = confusion.at[labels, logits.argmax(-1)].add(counts.astype(jnp.int32))
    return sums


def _embed_pairs(params: PyTree, batch: Batch, config: TrainConfig) -> dict[str, Array]:
    """Returns the embeddings of a batch's images and texts (B, E), and its `texts`, -1 in rows that count nowhere.

    What is to be found among all of an evaluation needs all of them.
    """
    model = build_model(config.model, **_runtime(config), scan=config.scan)
    images: Any = model.apply({"params": params}, normalise_batch(batch["image"], config), method="encode_images")
    texts: Any = model.apply({"params": params}, jnp.maximum(batch["label"], 0), method="encode_texts")
    scale = jnp.exp(params["logit_scale"])
    return {"image_embeddings": images, "text_embeddings": texts, "texts": batch["label"], "logit_scale": scale}
