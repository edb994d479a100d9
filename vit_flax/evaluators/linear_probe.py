"""Linear probing: a classifier on frozen features for each of several learning rates, all trained at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vit_flax.evaluators.frozen_features import FrozenFeatures

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)  # at 256 images
BATCH_SIZE = 1024
STEPS = 12_500
MOMENTUM = 0.9
HELD_OUT = 0.1  # of the training images, held out to select the learning rate where there is no validation split
TOLD = 500  # steps


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear classifier."""

    kernel: Float[np.ndarray, "d k"]
    bias: Float[np.ndarray, " k"]

    def classify(self, features: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
        """Returns the predicted class of each image."""
        return (features @ self.kernel + self.bias).argmax(1)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The probe of the best learning rate, with every rate's accuracy."""

    probe: Probe
    learning_rate: float
    validation: dict[float, float]  # accuracy on the validation images by learning rate


def linear_probe(
    train: FrozenFeatures,
    validation: FrozenFeatures | None,
    num_classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    told: Callable[[int], None] = lambda _steps: None,
) -> Chosen:
    """Trains a linear classifier, its learning rate selected on validation images.

    SGD with momentum 0.9, no weight decay, a cosine schedule to 0; learning rates are for a batch of 256 and scaled to
    the batch. Without validation images a tenth of the training images is held out to select the rate, and the best
    rate is trained once more on all.

    Args:
        train: images to train on.
        validation: images to select the learning rate on, or None.
        num_classes: number of classes.
        learning_rates: candidates, trained together on the same batches.
        steps: training steps.
        batch_size: images of a step; all of them where there are fewer.
        seed: seed of the order and of the initial weights.
        told: called with the number of steps of each part.

    Raises:
        ValueError: there are fewer than two images and none for validation.

    Reference: DINOv2's linear evaluation (eval/linear.py), without augmentation: features are computed once.
    """
    held = validation
    own = train
    if held is None:
        if len(train) < 2:
            raise ValueError("a linear probe needs two images at least")
        order = np.random.default_rng(seed).permutation(len(train))
        count = max(1, round(HELD_OUT * len(train)))
        held, own = train.take(order[:count]), train.take(order[count:])
    probes = fit(own, num_classes, learning_rates, steps, batch_size, seed, told)
    shares = [float((probe.classify(held.features) == held.labels).mean()) for probe in probes]
    best = int(np.argmax(shares))
    rate, probe = learning_rates[best], probes[best]
    if validation is None:
        (probe,) = fit(train, num_classes, [rate], steps, batch_size, seed, told)
    return Chosen(probe, rate, dict(zip(learning_rates, shares, strict=True)))


def fit(
    train: FrozenFeatures,
    num_classes: int,
    learning_rates: Sequence[float],
    steps: int,
    batch_size: int,
    seed: int = 0,
    told: Callable[[int], None] = lambda _steps: None,
) -> list[Probe]:
    """Returns a linear classifier for each learning rate; the arguments are those of `linear_probe`."""
    size, rng = min(batch_size, len(train)), np.random.default_rng(seed)
    width, count = train.features.shape[1], len(learning_rates)
    first = rng.normal(0, 0.01, (width, num_classes)).astype(np.float32)  # of all rates; std as in DINOv2
    heads = (jnp.repeat(first[None], count, 0), jnp.zeros((count, num_classes), jnp.float32))
    rates = jnp.asarray(learning_rates, jnp.float32) * (size / 256)
    features, labels = jnp.asarray(train.features, jnp.float32), jnp.asarray(train.labels, jnp.int32)
    state = (heads, _optimizer(steps).init(heads))
    order = np.empty(0, np.int64)
    for start in range(0, steps, TOLD):
        part = min(TOLD, steps - start)
        while len(order) < part * size:
            order = np.concatenate([order, rng.permutation(len(train))])
        rows, order = order[: part * size].reshape(part, size), order[part * size :]
        state = _train(state, features, labels, jnp.asarray(rows, jnp.int32), rates, steps)
        told(part)
    kernels, biases = jax.device_get(state[0])
    return [Probe(kernel, bias) for kernel, bias in zip(kernels, biases, strict=True)]


def _optimizer(steps: int) -> optax.GradientTransformation:
    return optax.sgd(optax.cosine_decay_schedule(1.0, steps), MOMENTUM)


Heads = tuple[Float[Array, "g d k"], Float[Array, "g k"]]


@partial(jax.jit, static_argnums=5)
def _train(
    state: tuple[Heads, optax.OptState],
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    rows: Int[Array, "s b"],
    rates: Float[Array, " g"],
    steps: int,
) -> tuple[Heads, optax.OptState]:
    """Returns heads and optimiser state after a step for each row of indices."""

    def loss(heads: Heads, x: Array, y: Array) -> Array:
        kernels, biases = heads
        logits = jnp.einsum("bd,gdk->gbk", x, kernels, precision=jax.lax.Precision.HIGHEST) + biases[:, None]
        # the sum over heads: each gets its own gradient
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[None]).mean(1).sum()

    def step(state: tuple[Heads, optax.OptState], rows: Array) -> tuple[tuple[Heads, optax.OptState], None]:
        heads, inner = state
        gradients = jax.grad(loss)(heads, features[rows], labels[rows])
        updates, inner = _optimizer(steps).update(gradients, inner)
        moved = jax.tree.map(lambda p, u: p + u * rates.reshape(-1, *[1] * (p.ndim - 1)), heads, updates)
        return (moved, inner), None

    return jax.lax.scan(step, state, rows)[0]
