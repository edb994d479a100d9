"""A ViT in the manner of google-research/big_vision's models/vit.py, written anew.

Kernels and normalisation are float32, products and the residual stream bfloat16; layers are unrolled or scanned, and a
scanned block is rematerialised where `remat` is set. GELU is exact here, as in the other contestants.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from benchmarks.peers.linen import embed, encode


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
        block: Any = Block
        if self.remat:
            policy = jax.checkpoint_policies.nothing_saveable
            block = nn.remat(Block, prevent_cse=not self.scan, policy=policy)
        x = encode(block, embed(self, images), (cfg.num_heads, cfg.mlp_dim, self.dtype), cfg.depth, self.scan)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
        return nn.Dense(cfg.num_classes, name="head")(x[:, 0])
