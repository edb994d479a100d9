"""Exponential moving average of the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vit_flax.train.config import EmaConfig


def ema_decay(config: EmaConfig, steps: Array) -> Array:
    """Computes the decay of the average at the update after that many steps, from 1."""
    age = jnp.maximum(0, jnp.asarray(steps, float) - config.update_after_step - 1)
    decay: Any = config.decay
    if config.warmup:
        rising = 1 - (1 + age / config.warmup_gamma) ** -config.warmup_power
        decay = jnp.maximum(jnp.minimum(rising, config.decay), config.min_decay)
    return jnp.where(age > 0, decay, 0.0)


def update_ema(config: EmaConfig, average: PyTree, params: PyTree, steps: Array) -> PyTree:
    """Returns the average after the update that follows step number `steps`, from 1.

    Reference: timm.utils.ModelEmaV3.
    """
    decay = ema_decay(config, steps)
    # decay 0 gives exactly the parameters, whatever the average was
    return jax.tree.map(lambda a, p: p + (a - p) * decay.astype(p.dtype), average, params)
