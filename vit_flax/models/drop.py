"""Dropout and stochastic depth, active only where `apply` is given a 'dropout' key."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.config import DropRates
from vit_flax.models.precision import accumulator_dtype


def is_dropping(module: nn.Module, rate: float | Array) -> bool:
    """Whether `rate` has any effect in this call of the module; a traced rate is taken to have one."""
    return not (isinstance(rate, int | float) and rate == 0) and module.has_rng("dropout")


def dropout(module: nn.Module, x: Array, rate: float) -> Array:
    """Applies dropout: single elements are set to 0 and the others scaled up.

    Reference: torch.nn.Dropout.
    """
    return _drop(module, x, rate, x.shape) if is_dropping(module, rate) else x


def drop_path(module: nn.Module, x: Float[Array, "b n d"], rate: float | Array) -> Float[Array, "b n d"]:
    """Applies stochastic depth: a residual branch is set to 0 for some images of the batch, scaled up for the others.

    Reference: timm.layers.DropPath; arXiv 1603.09382.
    """
    return _drop(module, x, rate, (x.shape[0], *(1,) * (x.ndim - 1))) if is_dropping(module, rate) else x


def _drop(module: nn.Module, x: Array, rate: float | Array, shape: tuple[int, ...]) -> Array:
    # float32, so that constant and traced rates draw the same bits, in 64-bit mode or not
    share = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(module.make_rng("dropout"), share, shape)
    wide = accumulator_dtype(x.dtype)  # bfloat16 would round the keep probability by up to 0.4 %
    return (x * (kept / share.astype(wide)).astype(wide)).astype(x.dtype)


def refuse_drops(kind: str, drop: DropRates, *names: str) -> None:
    """Raises ValueError for a rate that is set and that this type of block does not implement."""
    if found := [f"{name}={getattr(drop, name)}" for name in names if getattr(drop, name)]:
        raise ValueError(f"block {kind!r} has no place for {', '.join(found)}")
