"""Losses: the mean over a batch, from logits and labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.train.config import LossConfig


def soft_labels(labels: Array, num_classes: int, smoothing: float, dtype: jnp.dtype) -> Float[Array, "b k"]:
    """Returns labels as probabilities; integer ones become one-hot, and all are smoothed towards the uniform ones."""
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, num_classes, dtype=dtype)
    labels = labels.astype(dtype)
    return labels * (1 - smoothing) + smoothing / num_classes if smoothing else labels


def softmax_cross_entropy(logits: Float[Array, "b k"], labels: Array, smoothing: float = 0.0) -> Float[Array, ""]:
    """Computes the mean cross-entropy; labels are integers (B,) or probabilities (B, K).

    Reference: torch.nn.CrossEntropyLoss.
    """
    targets = soft_labels(labels, logits.shape[-1], smoothing, logits.dtype)
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()


def binary_cross_entropy(
    logits: Float[Array, "b k"],
    labels: Array,
    smoothing: float = 0.0,
    target_threshold: float | None = None,
    sum_classes: bool = False,
) -> Float[Array, ""]:
    """Computes the mean over images and classes of each class's own cross-entropy.

    Reference: timm.loss.BinaryCrossEntropy; soft labels are smoothed too, which there the mixing has done.
    """
    targets = soft_labels(labels, logits.shape[-1], smoothing, logits.dtype)
    if target_threshold is not None:
        targets = (targets > target_threshold).astype(logits.dtype)
    losses = jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return losses.sum(-1).mean() if sum_classes else losses.mean()


def classification_loss(logits: Float[Array, "b k"], labels: Array, config: LossConfig) -> Float[Array, ""]:
    """Computes the loss that the config names."""
    if config.name == "binary":
        return binary_cross_entropy(logits, labels, config.label_smoothing, config.target_threshold, config.sum_classes)
    return softmax_cross_entropy(logits, labels, config.label_smoothing)


def distillation_loss(
    dist_logits: Float[Array, "b k"], teacher_logits: Float[Array, "b k"], kind: str, tau: float = 1.0
) -> Float[Array, ""]:
    """Computes how far the distillation head is from a teacher: from its answer ('hard') or probabilities ('soft').

    The soft one is divided by images and classes, as the reference is.

    Reference: DistillationLoss of facebookresearch/deit, losses.py; arXiv 2012.12877.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    if kind == "hard":
        return softmax_cross_entropy(dist_logits, teacher_logits.argmax(-1))
    student, teacher = jax.nn.log_softmax(dist_logits / tau), jax.nn.log_softmax(teacher_logits / tau)
    return (jnp.exp(teacher) * (teacher - student)).sum() * tau**2 / dist_logits.size
