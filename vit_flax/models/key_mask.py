"""The key padding mask."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_flax.models.placed import as_batch_of
from vit_flax.models.position import Positions


class MaskedKeys(Positions):
    """Hides the keys of padding tokens from every query.

    Reference: transformers' Siglip2Attention.
    """

    def block_inputs(self, model: nn.Module, mask: Array | None) -> list[Array | np.ndarray | None]:
        """Returns the mask for each block."""
        return [mask] * model.config.depth

    def apply(
        self, attention: nn.Module, q: Array, k: Array, scale: float, given: Array | np.ndarray | None
    ) -> tuple[Array, Array, Array | None]:
        """Returns queries and keys with one more channel, which masks the keys of padding."""
        q, k = (q, k) if given is None else mask_keys(q, k, jnp.asarray(given), scale)
        return q, k, None


def mask_keys(q: Array, k: Array, mask: Array, scale: float) -> tuple[Array, Array]:
    """Returns (B, H, N, E + 1) queries and keys whose products are as before, hugely negative where `mask` is False.

    The additional channel keeps `dot_product_attention` and its backward pass as they are; `mask` is (B, N) of keys.
    """
    ones = jnp.full_like(q[..., :1], 1 / scale)
    hidden = jnp.where(mask[:, None, :, None], 0.0, -1e30).astype(k.dtype)
    hidden = jnp.broadcast_to(hidden, (*k.shape[:-1], 1), out_sharding=as_batch_of(k, 4))
    return jnp.concatenate([q, ones], axis=-1), jnp.concatenate([k, hidden], axis=-1)
