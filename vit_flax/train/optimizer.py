"""Optimisers, learning-rate schedules, weight decay and freezing, through optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, path_aware_map, unflatten_dict
from jaxtyping import Array, PyTree

from vit_flax.config import ModelConfig, ViTConfig
from vit_flax.models import trainable_mask, weight_decay_mask
from vit_flax.train.config import OptimizerConfig, ResolvedConfig, TrainConfig
from vit_flax.train.patterns import assign_tree, paths_of, select

_TORCH_CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm
_STEM = r"(cls_token|dist_token|reg_token|mask_token|pos_embed|norm_pre/.*)"


def make_optimizer(config: ResolvedConfig, params: PyTree) -> optax.GradientTransformation:
    """Returns the optimiser; of `params` only names and shapes are read."""
    numbers, model = config.optimizer, config.model
    decay = decay_mask(numbers, model, params)
    steps = []
    if numbers.clip_norm is not None:
        steps.append(clip_by_global_norm(numbers.clip_norm))
    if numbers.name == "sgd":
        # torch's SGD adds weight decay to the gradient, before the momentum
        steps.append(optax.add_decayed_weights(numbers.weight_decay, mask=decay))
        steps.append(optax.trace(numbers.momentum, numbers.nesterov))
    else:
        adam = optax.scale_by_adam(numbers.b1, numbers.b2, numbers.eps)
        steps.append(scale_by_muon(numbers) if numbers.name == "muon" else adam)
        steps.append(optax.add_decayed_weights(numbers.weight_decay, mask=decay))
    if numbers.name == "lamb" and numbers.weight_decay:
        # timm's trust ratio is of decayed parameters alone
        steps.append(optax.masked(optax.scale_by_trust_ratio(), decay))
    if numbers.layer_decay is not None:
        steps.append(scale_by_rules(layer_decay_rules(config.image_model, numbers.layer_decay), params))
    steps.append(optax.scale_by_learning_rate(learning_rate(config)))
    return optax.masked(optax.chain(*steps), trained_mask(config, params))


def scale_by_muon(numbers: OptimizerConfig) -> optax.GradientTransformation:
    """Orthogonalises the momentum of each matrix, scaled to Adam's updates; other parameters take NAdam.

    torch.optim.Muon differs: it iterates in bfloat16, and its Nesterov momentum has no bias correction.

    Reference: arXiv 2502.16982.
    """
    return optax.contrib.muon(
        -1.0,  # the learning rate comes last in the chain, and turns the sign
        beta=numbers.momentum,
        eps=numbers.eps,
        adam_b1=numbers.b1,
        adam_b2=numbers.b2,
        consistent_rms=0.2,
    )


def learning_rate(config: ResolvedConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the steps taken."""
    schedule, peak = config.schedule, config.optimizer.learning_rate
    total, warmup = config.steps, config.warmup_steps

    def rate(step: Any) -> Any:
        step = jnp.asarray(step, float)  # the widest float that JAX is set to: an int32 would make it float32
        rising = schedule.warmup_start + (1 - schedule.warmup_start) * step / max(1, warmup)
        if schedule.name == "constant":
            falling = 1.0
        else:
            done = jnp.clip((step - warmup) / max(1, total - warmup), 0, 1)
            falling = schedule.final + (1 - schedule.final) * 0.5 * (1 + jnp.cos(np.pi * done))
        return peak * jnp.where(step < warmup, rising, falling)

    return rate


def global_norm(tree: PyTree) -> Array:
    """Computes the global L2 norm of a tree."""
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Clips gradients by their global norm.

    Reference: torch.nn.utils.clip_grad_norm_.
    """

    def clip(updates: Any, params: PyTree = None) -> Any:
        del params
        factor = jnp.minimum(1.0, max_norm / (global_norm(updates) + _TORCH_CLIP_EPS))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    return optax.stateless(clip)


def decay_mask(numbers: OptimizerConfig, model: ModelConfig, params: PyTree) -> PyTree:
    """Returns the weight-decay mask: True for each parameter that is decayed.

    Reference: for 'matrices', timm.optim.param_groups_weight_decay.
    """
    if not isinstance(numbers.decay, str):
        return assign_tree(numbers.decay, params)
    mask = weight_decay_mask(model, params)
    if numbers.decay == "matrices":
        flat: dict[str, Any] = flatten_dict(params, sep="/")  # pyright: ignore[reportAssignmentType]
        shapes = {path: np.shape(leaf) for path, leaf in flat.items()}
        mask = path_aware_map(lambda path, decayed: decayed and len(shapes["/".join(map(str, path))]) > 1, mask)
    return mask


def trained_mask(config: TrainConfig, params: PyTree) -> PyTree:
    """Returns the mask of trained parameters: False for frozen ones, and for those that the model never trains.

    Raises:
        ValueError: a pattern matches no parameter, or none is left to train.
    """
    paths = paths_of(params)
    frozen = select(config.optimizer.freeze, paths)
    if config.optimizer.train:
        frozen |= set(paths) - select(config.optimizer.train, paths)
    own = flatten_dict(trainable_mask(config.model, params), sep="/")
    mask = {path: own[path] and path not in frozen for path in paths}
    if not any(mask.values()):
        raise ValueError("every parameter is frozen: nothing is left to train")
    return unflatten_dict(mask, sep="/")


def layer_decay_rules(model: ViTConfig, decay: float) -> tuple[tuple[str, float], ...]:
    """Returns (pattern, factor) rules of layer-wise learning-rate decay: 1 for the head, less for each block below.

    Reference: timm.optim.param_groups_layer_decay; the final norm counts as part of the last block.
    """
    blocks = [(rf"blocks_{i}/.*", decay ** (model.depth - i)) for i in range(model.depth)]
    stem = "|".join((_STEM, *model.tokens.stem, *model.position.stem))
    return ((stem, decay ** (model.depth + 1)), *blocks, (r"norm/.*", decay), (r".*", 1.0))


def scale_by_rules(rules: tuple[tuple[str, float], ...], params: PyTree) -> optax.GradientTransformation:
    """Scales each parameter's update by the factor of the first rule that matches its path."""
    factors = assign_tree(rules, params)

    def scale(updates: Any, params: PyTree = None) -> Any:
        del params
        # what is frozen stands in the tree as an empty node
        return jax.tree.map(lambda f, g: g if isinstance(g, optax.MaskedNode) else g * f, factors, updates)

    return optax.stateless(scale)
