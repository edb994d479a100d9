"""A ViT written the way of google-research/big_vision's models/vit.py, in our own few lines.

Kernels and normalisation are float32, products and the residual stream bfloat16; layers are unrolled or scanned, and a
scanned block keeps nothing for its backward pass where `remat` is set. GELU is exact here, as in the other contestants.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    """Pre-norm attention and MLP on a stream of the products' dtype."""

    heads: int
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x, _):
        """Returns the tokens, and nothing for scan to stack."""
        y = nn.LayerNorm(epsilon=1e-6, name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, deterministic=True, name="attn")(y, y)
        y = nn.LayerNorm(epsilon=1e-6, name="norm2")(x)
        y = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(y), approximate=False)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y), None


class BigVisionViT(nn.Module):
    """The ViT of the cases, class token and learned positions."""

    config: Any
    dtype: Any
    scan: bool
    remat: bool

    @nn.compact
    def __call__(self, images):
        """Returns the logits."""
        cfg = self.config
        x = nn.Conv(cfg.embed_dim, cfg.patch_size, cfg.patch_size, "VALID", dtype=self.dtype, name="embedding")(images)
        x = x.reshape(x.shape[0], -1, cfg.embed_dim)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, cfg.embed_dim)).astype(x.dtype)
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("pos", nn.initializers.normal(0.02), (1, x.shape[1], cfg.embed_dim)).astype(x.dtype)
        block: Any = Block
        if self.remat:
            policy = jax.checkpoint_policies.nothing_saveable
            block = nn.remat(Block, prevent_cse=not self.scan, policy=policy)
        kept = (cfg.num_heads, cfg.mlp_dim, self.dtype)
        if self.scan:
            axes: Any = nn.broadcast  # what the signature says is an int
            split: Any = {"params": True}
            stacked = nn.scan(block, {"params": 0}, split_rngs=split, in_axes=axes, length=cfg.depth)
            x, _ = stacked(*kept, name="blocks")(x, None)
        else:
            for index in range(cfg.depth):
                x, _ = block(*kept, name=f"block_{index}")(x, None)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
        return nn.Dense(cfg.num_classes, name="head")(x[:, 0])
