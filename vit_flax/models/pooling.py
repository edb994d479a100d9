"""From tokens to one vector an image."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def pool_tokens(
    tokens: Float[Array, "b n d"], global_pool: str, num_prefix_tokens: int, include_prefix: bool = False
) -> Array:
    """Reduces tokens to one vector an image; 'none' returns them as they are, 'token_avg' a vector twice as wide.

    Reference: timm.models.vision_transformer.global_pool_nlc; 'token_avg' is the input of DINOv2's linear classifier.
    """
    if global_pool == "none":
        return tokens
    if global_pool == "token":
        return tokens[:, 0]
    pooled = tokens if include_prefix else tokens[:, num_prefix_tokens:]
    if global_pool == "avg":
        return pooled.mean(axis=1)
    if global_pool == "max":
        return pooled.max(axis=1)
    if global_pool == "avgmax":
        return 0.5 * (pooled.max(axis=1) + pooled.mean(axis=1))
    if global_pool == "token_avg":
        return jnp.concatenate([tokens[:, 0], pooled.mean(axis=1)], axis=-1)
    raise ValueError(f"no pooling named {global_pool!r}")
