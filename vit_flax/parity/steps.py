"""Trains both models on the same batches and compares the loss of every step and the parameters after the last."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vit_flax.parity.compare import Row, Subject, compare_arrays, require_x64


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Hyperparameters of AdamW, the same in both frameworks."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.05


@dataclasses.dataclass(frozen=True)
class Steps:
    """Loss of every step in both frameworks, and a row for the losses and for every parameter after the last step."""

    torch_losses: list[float]
    flax_losses: list[float]
    rows: list[Row]


def compare_steps(
    subject: Subject,
    batches: list[tuple[np.ndarray, np.ndarray]],
    decay_mask: PyTree,
    no_weight_decay: set[str],
    optimizer: AdamW = AdamW(),
    flax_optimizer: AdamW | None = None,
) -> Steps:
    """Takes an AdamW step on each batch in float64, in both frameworks, and compares losses and final parameters.

    Args:
        subject: the two models; must have `export`.
        batches: (images (B, C, H, W), labels (B,)); integer labels take cross-entropy, others mean squared error.
        decay_mask: pytree of booleans like the parameters, optax's mask of weight decay.
        no_weight_decay: last part of the names of parameters that torch does not decay.
        optimizer: hyperparameters of both optimisers.
        flax_optimizer: other hyperparameters for Flax, as a deliberate error.

    Returns:
        the losses, a row for them ('loss'), and a row for every parameter after the last step.

    Raises:
        ValueError: JAX is in 32-bit mode, or the subject has no `export`.
    """
    require_x64()
    if subject.export is None:
        raise ValueError("comparing optimiser steps needs Subject.export, which names the parameters as torch does")
    before = {name: value.detach().double().numpy() for name, value in subject.torch_module.state_dict().items()}
    torch_losses, torch_params = _train_torch(subject, batches, no_weight_decay, optimizer)
    flax_losses, flax_tree = _train_flax(subject, batches, decay_mask, flax_optimizer or optimizer)
    flax_params = subject.export(flax_tree)
    largest = max(float(np.linalg.norm(p)) for p in torch_params.values())
    rows = [compare_arrays("loss", "loss", np.asarray(torch_losses), np.asarray(flax_losses))]
    rows += [
        # a parameter that only torch has must keep its initial value
        compare_arrays(name, name, value, np.asarray(flax_params.get(name, before[name])), largest_norm=largest)
        for name, value in torch_params.items()
    ]
    return Steps(torch_losses, flax_losses, rows)


def _train_torch(
    subject: Subject, batches: list[tuple[np.ndarray, np.ndarray]], no_weight_decay: set[str], numbers: AdamW
) -> tuple[list[float], dict[str, np.ndarray]]:
    import torch

    module = copy.deepcopy(subject.torch_module).double()
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    spared = [p for name, p in named if name.split(".")[-1] in no_weight_decay]
    decayed = [p for name, p in named if name.split(".")[-1] not in no_weight_decay]
    groups = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, numbers.learning_rate, (numbers.beta1, numbers.beta2), numbers.eps, numbers.weight_decay
    )
    losses = []
    for images, labels in batches:
        out, targets = module(torch.from_numpy(images)), torch.from_numpy(labels)
        integers = np.issubdtype(labels.dtype, np.integer)
        loss = torch.nn.functional.cross_entropy(out, targets) if integers else (out - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: value.detach().numpy() for name, value in module.state_dict().items()}


def _train_flax(
    subject: Subject, batches: list[tuple[np.ndarray, np.ndarray]], decay_mask: Any, numbers: AdamW
) -> tuple[list[float], Any]:
    import optax

    optimizer = optax.adamw(
        numbers.learning_rate,
        numbers.beta1,
        numbers.beta2,
        numbers.eps,
        weight_decay=numbers.weight_decay,
        mask=decay_mask,
    )
    step = jax.jit(_make_step(subject.function, optimizer))
    params, state, losses = subject.params, optimizer.init(subject.params), []
    for images, labels in batches:
        params, state, loss = step(params, state, jnp.asarray(subject.to_flax(images)), jnp.asarray(labels))
        losses.append(float(loss))
    return losses, params


def _make_step(function: Callable[[Any, Any], Any], optimizer: Any) -> Callable[..., Any]:
    import optax

    def loss_of(params: PyTree, images: Any, labels: Any) -> Any:
        out = function(params, images)
        if jnp.issubdtype(labels.dtype, jnp.integer):
            return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()
        return jnp.square(out - labels).mean()

    def step(params: PyTree, state: PyTree, images: Any, labels: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, images, labels)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step
