"""The projection to queries, keys and values where keys have no bias of their own."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.models.linear import Linear
from vit_flax.models.precision import Precision


def project_qkv(
    module: nn.Module,
    x: Float[Array, "b n d"],
    bias: bool,
    key_bias: bool,
    precision: Precision,
) -> Float[Array, "b n e"]:
    """Returns queries, keys and values side by side, with parameters of `module`.

    `bias` is that of queries and values. Where keys have the same, all is one Linear `qkv`; else the kernel is, and the
    biases are `q_bias`, `k_bias` and `v_bias`, those that there are.
    """
    dim, dtype = x.shape[-1], precision.params
    qkv = Linear(3 * dim, bias and key_bias, precision, name="qkv")(x)
    if bias == key_bias:
        return qkv
    there = {"q_bias": bias, "k_bias": key_bias, "v_bias": bias}
    parts = [
        module.param(name, nn.initializers.zeros, (dim,), dtype) if has else jnp.zeros((dim,), dtype)
        for name, has in there.items()
    ]
    return precision.keep(qkv + jnp.concatenate(parts))
