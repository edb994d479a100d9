"""Arrays whose type says on which devices they lie: explicit shardings, and the manual axes of jax.shard_map.

Both are part of an array's type only where the caller's mesh makes them so; elsewhere nothing here does anything.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array


def explicit_sharding(x: Array) -> NamedSharding | None:
    """Returns the sharding that is part of the type of `x`; None where the compiler chooses shardings."""
    sharding: Any = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def as_batch_of(x: Array, ndim: int) -> NamedSharding | None:
    """Returns the sharding of an array of `ndim` axes, of which the first is split as that of `x`; None as above."""
    sharding = explicit_sharding(x)
    return (
        None
        if sharding is None
        else NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1], *[None] * (ndim - 1)))
    )


def reshape(x: Array, *shape: int) -> Array:
    """Returns `x.reshape(shape)`, which keeps the first axis; where that alone is split, it stays so.

    JAX asks where the parts of a reshaped array should lie, even if the axis that is split does not change.
    """
    sharding = explicit_sharding(x)
    if sharding is None or any(sharding.spec[1:]):
        return x.reshape(shape)
    return jnp.reshape(x, shape, out_sharding=as_batch_of(x, len(shape)))


class custom_vjp(jax.custom_vjp):
    """jax.custom_vjp whose backward pass may also run inside jax.shard_map.

    There parameters are the same on all devices and activations are not, and JAX adds up the gradients of what is the
    same where it was made to vary. So arguments are made to vary alike before the function whose backward pass is
    written out.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        leaves, tree = jax.tree.flatten(args)
        return super().__call__(*tree.unflatten(_varying_alike(leaves)), **kwargs)


def _varying_alike(args: list[Any]) -> list[Any]:
    axes = [jax.typeof(arg).manual_axis_type.varying if isinstance(arg, jax.Array) else None for arg in args]
    together = frozenset[Any]().union(*(own for own in axes if own is not None))

    def cast(arg: Any, own: Any) -> Any:
        missing = () if own is None else tuple(sorted(together - own))
        return lax.pcast(arg, missing, to="varying") if missing else arg

    return [cast(arg, own) for arg, own in zip(args, axes, strict=True)]
