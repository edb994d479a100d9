"""The projection to queries, keys and values where keys have no bias of their own."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.models.linear import Linear


def project_qkv(
    module: nn.Module,
    x: Float[Array, "b n d"],
    bias: bool,
    key_bias: bool,
    dtype: Any,
    param_dtype: Any,
    precision: Any,
) -> Float[Array, "b n e"]:
    """Returns queries, keys and values side by side, with parameters of `module`.

    `bias` is that of queries and values. Where keys have the same, all is one Linear `qkv`; else the kernel is, and the
    biases are `q_bias`, `k_bias` and `v_bias`, those that there are.
    """
    dim = x.shape[-1]
    qkv = Linear(3 * dim, bias and key_bias, dtype, param_dtype, precision, name="qkv")(x)
    if bias == key_bias:
        return qkv
    there = {"q_bias": bias, "k_bias": key_bias, "v_bias": bias}
    parts = [
        module.param(name, nn.initializers.zeros, (dim,), param_dtype) if has else jnp.zeros((dim,), param_dtype)
        for name, has in there.items()
    ]
    return qkv + jnp.concatenate(parts)
