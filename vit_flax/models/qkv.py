"""Splits a projection into heads of queries, keys and values, and merges heads."""

from __future__ import annotations

from jaxtyping import Array, Float

from vit_flax.models.placed import reshape


def split_qkv(x: Float[Array, "b n d"], num_heads: int, parts: int = 3) -> tuple[Array, ...]:
    """Returns the (B, H, N, E) heads of `parts` tensors that lie side by side in the last axis."""
    batch, tokens, _ = x.shape
    # (B, N, 3 H E) -> (3, B, H, N, E)
    return tuple(reshape(x, batch, tokens, parts, num_heads, -1).transpose(2, 0, 3, 1, 4))


def merge_heads(x: Array) -> Float[Array, "b n d"]:
    """Joins (B, H, N, E) heads."""
    x = x.transpose(0, 2, 1, 3)
    return reshape(x, *x.shape[:2], -1)
