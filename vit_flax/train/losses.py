"""Losses: the mean over a batch, from logits and labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.train.config import LossConfig


def soft_labels(labels: Array, num_classes: int, smoothing: float, dtype: jnp.dtype) -> Float[Array, "b k"]:
    """Returns smoothed label probabilities; integer labels become one-hot."""
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, num_classes, dtype=dtype)
    labels = labels.astype(dtype)
    return labels * (1 - smoothing) + smoothing / num_classes if smoothing else labels


def softmax_cross_entropy(
    logits: Float[Array, "b k"], labels: Array, smoothing: float = 0.0, weights: Float[Array, " k"] | None = None
) -> Float[Array, ""]:
    """Computes the mean cross-entropy; labels are integers (B,) or probabilities (B, K).

    Each class's part of it is multiplied by its weight, and not divided by the sum of the weights: `batch_weights` has
    done that.

    Reference: torch.nn.CrossEntropyLoss.
    """
    targets = soft_labels(labels, logits.shape[-1], smoothing, logits.dtype)
    if weights is not None:
        targets = targets * weights.astype(logits.dtype)
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()


def binary_cross_entropy(
    logits: Float[Array, "b k"],
    labels: Array,
    smoothing: float = 0.0,
    target_threshold: float | None = None,
    sum_classes: bool = False,
    pos_weight: Float[Array, " k"] | None = None,
) -> Float[Array, ""]:
    """Computes the binary cross-entropy of every class, averaged over images and classes.

    Reference: timm.loss.BinaryCrossEntropy; soft labels are smoothed too, which there the mixing has done. With
    `pos_weight`, torch.nn.BCEWithLogitsLoss.
    """
    targets = soft_labels(labels, logits.shape[-1], smoothing, logits.dtype)
    if target_threshold is not None:
        targets = (targets > target_threshold).astype(logits.dtype)
    if pos_weight is None:
        losses = jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    else:
        softplus = jnp.maximum(-logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        losses = (1 - targets) * logits + (1 + (pos_weight.astype(logits.dtype) - 1) * targets) * softplus
    return losses.sum(-1).mean() if sum_classes else losses.mean()


def batch_weights(labels: Array, config: LossConfig) -> Float[Array, " k"] | None:
    """Returns the classes' weights for a batch, or None where there are none.

    As torch's are, they are divided by the mean weight of the batch's labels, where these are integers: of the whole
    batch, so that parts of it add up to the same.
    """
    if config.name == "binary":
        return None if config.pos_weight is None else _numbers(config.pos_weight)
    if config.class_weights is None:
        return None
    weights = _numbers(config.class_weights)
    return weights / weights[labels].mean() if labels.ndim == 1 else weights


def _numbers(weights: tuple[float, ...] | str) -> Float[Array, " k"]:
    if isinstance(weights, str):
        raise ValueError(f"weights {weights!r} need the data: call TrainConfig.resolve first")
    return jnp.asarray(weights, float)  # the widest float that JAX is set to


def classification_loss(
    logits: Float[Array, "b k"], labels: Array, config: LossConfig, weights: Float[Array, " k"] | None = None
) -> Float[Array, ""]:
    """Computes the loss that the config names; `weights` are those of `batch_weights`."""
    if config.name == "binary":
        return binary_cross_entropy(
            logits, labels, config.label_smoothing, config.target_threshold, config.sum_classes, weights
        )
    return softmax_cross_entropy(logits, labels, config.label_smoothing, weights)


def distillation_loss(
    dist_logits: Float[Array, "b k"], teacher_logits: Float[Array, "b k"], kind: str, tau: float = 1.0
) -> Float[Array, ""]:
    """Computes the distillation loss against a teacher's argmax ('hard') or softened probabilities ('soft').

    The soft one is divided by images and classes, as the reference is.

    Reference: DistillationLoss of facebookresearch/deit, losses.py; arXiv 2012.12877.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    if kind == "hard":
        return softmax_cross_entropy(dist_logits, teacher_logits.argmax(-1))
    student, teacher = jax.nn.log_softmax(dist_logits / tau), jax.nn.log_softmax(teacher_logits / tau)
    return (jnp.exp(teacher) * (teacher - student)).sum() * tau**2 / dist_logits.size
