"""Runs a JAX function of (params, NHWC images) as inference or as an AdamW training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers import Job, Prepared

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.05


def prepare_inference(job: Job, apply: Callable[[Any, Any], Any], params: Any) -> Prepared:
    """Compiles `apply` for the job's batch."""
    import jax

    images = jax.device_put(job.images)
    params = jax.device_put(params)
    started = time.perf_counter()
    compiled = jax.jit(apply).lower(params, images).compile()
    seconds = time.perf_counter() - started
    # features are several arrays
    outputs = np.stack([np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(compiled(params, images))])
    run = partial(_finished, compiled, params, images)
    return Prepared(run, outputs, seconds, _told(compiled))


def _finished(compiled: Callable[..., Any], params: Any, images: Any) -> Any:
    import jax

    return jax.block_until_ready(compiled(params, images))


def make_train_step(apply: Callable[[Any, Any], Any], parts: int = 1) -> tuple[Any, Callable[..., Any]]:
    """Returns AdamW and the step, ((params, its state), images, labels) -> (the same after the step, loss).

    Gradients are accumulated over so many parts of the batch.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from vit_flax.train.step import accumulate

    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss_of(params, images, labels, _key):
        logits = apply(params, images).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state, images, labels):
        params, optimizer_state = state
        loss, grads = accumulate(loss_of, params, images, labels, jax.random.key(0), parts)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), loss

    return optimizer, step


def prepare_train_step(job: Job, apply: Callable[[Any, Any], Any], params: Any, parts: int = 1) -> Prepared:
    """Compiles loss, gradients and the AdamW update into one call that donates the state."""
    import jax

    optimizer, step = make_train_step(apply, parts)
    images, labels = jax.device_put(job.images), jax.device_put(job.labels)
    params = jax.device_put(params)
    state = (params, optimizer.init(params))
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, images, labels).compile()
    seconds = time.perf_counter() - started
    held = [state]

    def run() -> Any:
        held[0], loss = compiled(held[0], images, labels)
        return jax.block_until_ready((held[0], loss))[1]

    losses = np.asarray([run() for _ in range(3)], np.float32)
    return Prepared(run, losses, seconds, _told(compiled))


def _told(compiled: Any) -> dict[str, Any]:
    """Returns the compiler's cost analysis; its bytes are those of every operation, cached or not."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return {
        "temp_bytes": getattr(memory, "temp_size_in_bytes", None),
        "compiler_flops": cost.get("flops"),
        "compiler_bytes": cost.get("bytes accessed"),
    }
