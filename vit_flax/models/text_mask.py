"""The attention mask of texts: key padding, and causality."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_flax.models.key_mask import MaskedKeys
from vit_flax.models.precision import accumulator_dtype


class TextMasks(MaskedKeys):
    """Hides the keys of padding from every query, and those of later tokens where the config says `causal`.

    Reference: transformers' create_causal_mask; open_clip's TextTransformer.build_causal_mask.
    """

    def apply(
        self, attention: nn.Module, q: Array, k: Array, scale: float, given: Array | np.ndarray | None
    ) -> tuple[Array, Array, Array | None]:
        """Returns queries and keys that know the padding, and what hides later tokens (1, H, N, N)."""
        q, k, _ = super().apply(attention, q, k, scale, given)
        if not self.config.position.causal:  # pyright: ignore[reportAttributeAccessIssue]
            return q, k, None
        place = jnp.arange(q.shape[2])
        earlier = place[:, None] >= place[None]
        bias = jnp.where(earlier, 0.0, -jnp.inf).astype(accumulator_dtype(q.dtype))
        return q, k, jnp.broadcast_to(bias, (1, q.shape[1], *bias.shape))
