"""Pooling of tokens to one vector an image."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def pool_tokens(
    tokens: Float[Array, "b n d"],
    global_pool: str,
    num_prefix_tokens: int,
    include_prefix: bool = False,
    mask: Bool[Array, "b n"] | None = None,
    pool_tokens: tuple[int, ...] | None = None,
) -> Array:
    """Reduces tokens to one vector an image; 'none' returns them as they are, 'token_avg' a vector twice as wide.

    `mask` is of the tokens that are no padding; `pool_tokens` which prefix tokens 'prefix' joins and 'prefix_avg'
    averages, None for all.

    Reference: timm.models.vision_transformer.global_pool_nlc; 'token_avg' is the input of DINOv2's linear classifier,
    'prefix' the summary of transformers' RadioModel, 'prefix_avg' the output of its PixioModel.
    """
    if global_pool == "none":
        return tokens
    if global_pool == "token":
        return tokens[:, 0]
    if global_pool in ("prefix", "prefix_avg"):
        chosen = range(num_prefix_tokens) if pool_tokens is None else pool_tokens
        kept = [tokens[:, i] for i in chosen]
        return jnp.concatenate(kept, axis=-1) if global_pool == "prefix" else jnp.stack(kept, axis=1).mean(axis=1)
    first = 0 if include_prefix else num_prefix_tokens
    pooled, mask = tokens[:, first:], None if mask is None else mask[:, first:, None]
    if global_pool == "avg":
        return _mean(pooled, mask)
    if global_pool == "max":
        return _max(pooled, mask)
    if global_pool == "avgmax":
        return 0.5 * (_max(pooled, mask) + _mean(pooled, mask))
    if global_pool == "token_avg":
        return jnp.concatenate([tokens[:, 0], _mean(pooled, mask)], axis=-1)
    raise ValueError(f"no pooling named {global_pool!r}")


def _mean(tokens: Array, mask: Array | None) -> Array:
    if mask is None:
        return tokens.mean(axis=1)
    kept = mask.astype(tokens.dtype)
    return (tokens * kept).sum(1) / kept.sum(1)


def _max(tokens: Array, mask: Array | None) -> Array:
    return (tokens if mask is None else jnp.where(mask, tokens, -jnp.inf)).max(axis=1)
