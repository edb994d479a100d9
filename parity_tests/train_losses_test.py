"""Losses against torch, timm and DeiT's formulas, in float64, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from parity_tests.peers import import_timm
from vit_flax.parity.tolerances import FLOAT32_ROUNDING, FLOAT64_EPS, FLOAT64_RELATIVE, FLOAT64_ROUNDING
from vit_flax.train.config import LossConfig
from vit_flax.train.feature_distillation import feature_loss
from vit_flax.train.losses import (
    batch_weights,
    binary_cross_entropy,
    classification_loss,
    distillation_loss,
    softmax_cross_entropy,
)

RNG = np.random.default_rng(0)
LOGITS = 5 * RNG.standard_normal((6, 7))
TEACHER = 5 * RNG.standard_normal((6, 7))
LABELS = RNG.integers(0, 7, 6)
SOFT = RNG.dirichlet(np.ones(7), 6)


def _assert_same(ours, theirs) -> None:
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(LOGITS))
    x = torch.from_numpy(LOGITS).requires_grad_()
    loss = theirs(x)
    loss.backward()
    assert x.grad is not None
    np.testing.assert_allclose(value, loss.item(), rtol=FLOAT64_ROUNDING)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=FLOAT64_RELATIVE, atol=4 * FLOAT64_EPS)


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["integer", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy(labels: np.ndarray, smoothing: float) -> None:
    _assert_same(
        lambda x: softmax_cross_entropy(x, jnp.asarray(labels), smoothing),
        lambda x: functional.cross_entropy(x, torch.from_numpy(labels), label_smoothing=smoothing),
    )


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["integer", "soft"])
def test_binary_cross_entropy(labels: np.ndarray, threshold: float | None, sum_classes: bool) -> None:
    import_timm()
    from timm.loss.binary_cross_entropy import BinaryCrossEntropy

    smoothing = 0.1 if labels is LABELS else 0.0  # timm takes soft labels as they are
    theirs = BinaryCrossEntropy(smoothing, threshold, sum_classes=sum_classes)
    _assert_same(
        lambda x: binary_cross_entropy(x, jnp.asarray(labels), smoothing, threshold, sum_classes),
        lambda x: theirs(x, torch.from_numpy(labels)),
    )


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["integer", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights(labels: np.ndarray, smoothing: float) -> None:
    weights = RNG.uniform(0.2, 3.0, 7)
    config = LossConfig(class_weights=tuple(weights), label_smoothing=smoothing)
    own = batch_weights(jnp.asarray(labels), config)
    theirs = torch.from_numpy(weights)
    _assert_same(
        lambda x: classification_loss(x, jnp.asarray(labels), config, own),
        lambda x: functional.cross_entropy(x, torch.from_numpy(labels), theirs, label_smoothing=smoothing),
    )
    if labels is LABELS:  # the parts of a batch, of the weights of the whole, add up
        parts = [classification_loss(jnp.asarray(LOGITS[k::2]), jnp.asarray(LABELS[k::2]), config, own) for k in (0, 1)]
        whole = classification_loss(jnp.asarray(LOGITS), jnp.asarray(LABELS), config, own)
        np.testing.assert_allclose(sum(parts) / 2, whole, rtol=FLOAT64_ROUNDING)


def test_pos_weight() -> None:
    hot, weights = RNG.integers(0, 2, (6, 7)), RNG.uniform(0.2, 9.0, 7)
    config = LossConfig(name="binary", pos_weight=tuple(weights.tolist()))
    own = batch_weights(jnp.asarray(hot), config)
    theirs = torch.from_numpy(weights)
    _assert_same(
        lambda x: classification_loss(x, jnp.asarray(hot), config, own),
        lambda x: functional.binary_cross_entropy_with_logits(x, torch.from_numpy(hot).double(), pos_weight=theirs),
    )


def test_smoothed_soft_labels_are_those_of_timms_mixing() -> None:
    import_timm()
    from timm.data.mixup import mixup_target

    mixed = mixup_target(torch.from_numpy(LABELS), 7, lam=0.3, smoothing=0.1).double()
    one_hot = np.eye(7)[LABELS]
    soft = jnp.asarray(0.3 * one_hot + 0.7 * one_hot[::-1])
    ours = binary_cross_entropy(jnp.asarray(LOGITS), soft, 0.1)
    theirs = functional.binary_cross_entropy_with_logits(torch.from_numpy(LOGITS), mixed)
    np.testing.assert_allclose(ours, theirs.item(), rtol=FLOAT32_ROUNDING)  # timm mixes in float32


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_distillation(kind: str) -> None:
    """The formulas of facebookresearch/deit, losses.py, in torch's own functions."""
    tau, teacher = 3.0, torch.from_numpy(TEACHER)

    def soft(x: torch.Tensor) -> torch.Tensor:
        student, target = functional.log_softmax(x / tau, 1), functional.log_softmax(teacher / tau, 1)
        return functional.kl_div(student, target, reduction="sum", log_target=True) * tau**2 / x.numel()

    theirs = soft if kind == "soft" else lambda x: functional.cross_entropy(x, teacher.argmax(1))
    _assert_same(lambda x: distillation_loss(x, jnp.asarray(TEACHER), kind, tau), theirs)


def test_feature_distillation() -> None:
    student, teacher = RNG.standard_normal((2, 1, 3, 4)), 9 + RNG.standard_normal((2, 1, 3, 7))
    kernels, biases = RNG.standard_normal((2, 4, 7)), RNG.standard_normal((2, 7))

    def ours(patches, kernels, biases):
        projections = {f"layer_{i}": {"kernel": kernels[i], "bias": biases[i]} for i in range(2)}
        own = [(x, jnp.ones((1, 2, 4))) for x in patches]
        return feature_loss(own, [(jnp.asarray(x), None) for x in teacher], projections, has_class_token=False)

    def whitened(x):
        return functional.layer_norm(x, x.shape[-1:], eps=1e-6)

    arguments = [jnp.asarray(x) for x in (student, kernels, biases)]
    value, gradients = jax.value_and_grad(ours, argnums=(0, 1, 2))(*arguments)
    tensors = [torch.from_numpy(x).requires_grad_() for x in (student, kernels, biases)]
    projected = torch.einsum("lbnd,lde->lbne", tensors[0], tensors[1]) + tensors[2][:, None, None]
    loss = functional.mse_loss(whitened(projected), whitened(torch.from_numpy(teacher)))
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=FLOAT64_ROUNDING)
    for mine, theirs in zip(gradients, tensors, strict=True):
        assert theirs.grad is not None
        np.testing.assert_allclose(mine, theirs.grad.numpy(), rtol=FLOAT64_RELATIVE, atol=4 * FLOAT64_EPS)
