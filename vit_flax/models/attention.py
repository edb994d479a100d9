"""Multi-head self-attention."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_flax.models.attention_backends import dot_product_attention, heads_dot
from vit_flax.models.drop import dropout, is_dropping
from vit_flax.models.linear import Linear
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.precision import HIGHEST, Precision, accumulator_dtype


def hide_keys(q: Array, k: Array, mask: Array, scale: float) -> tuple[Array, Array]:
    """Returns (B, H, N, E + 1) queries and keys whose products are as before, hugely negative where `mask` is False.

    The additional channel keeps `dot_product_attention` and its backward pass as they are; `mask` is (B, N) of keys.
    """
    ones = jnp.full((*q.shape[:-1], 1), 1 / scale, q.dtype)
    hidden = jnp.where(mask[:, None, :, None], 0.0, -1e30).astype(k.dtype)
    hidden = jnp.broadcast_to(hidden, (*k.shape[:-1], 1))
    return jnp.concatenate([q, ones], axis=-1), jnp.concatenate([k, hidden], axis=-1)


def dropped_attention(module: nn.Module, q: Array, k: Array, v: Array, scale: float, rate: float) -> Array:
    """Computes `dot_product_attention` with weights left out at random, all in float32 or wider."""
    wide = accumulator_dtype(q.dtype)
    q, k, v = (part.astype(wide) for part in (q, k, v))
    weights = jax.nn.softmax(heads_dot(q * scale, k, 3, 3, HIGHEST), axis=-1)
    return heads_dot(dropout(module, weights, rate), v, 3, 2, HIGHEST)


class Attention(nn.Module):
    """Lets every token gather from every other, and projects what it gathered.

    `value_skip` adds each token's own values, heads merged, after the projection: the tutorial's attention and T2T's
    token transformers do, since there input and output widths may differ; most other ViTs do not. `qk_norm` normalises
    the queries and keys of each head, `scale_norm` the merged heads before the projection.

    Raises:
        ValueError: `features` is not divisible by `num_heads`.

    Reference: the tutorial's Attention(dim, chan, num_heads, qkv_bias, qk_scale); timm.layers.Attention without skip.
    """

    features: int  # the tutorial's `chan`: width of q, k, v each and of the output
    num_heads: int = 1
    qkv_bias: bool = False
    qk_scale: float | None = None  # None or 0: head_dim ** -0.5
    value_skip: bool = True
    qk_norm: bool = False
    proj_bias: bool = True
    scale_norm: bool = False
    norm_layer: str = "layernorm"
    norm_eps: float | None = 1e-6
    precision: Precision = Precision()
    attn_drop: float = 0.0
    proj_drop: float = 0.0

    def setup(self) -> None:
        """Builds the two projections and the norms."""
        if self.features % self.num_heads:
            raise ValueError(f"attention width {self.features} is not divisible by num_heads {self.num_heads}")
        linear = partial(Linear, precision=self.precision)
        self.qkv = linear(3 * self.features, use_bias=self.qkv_bias)
        self.proj = linear(self.features, use_bias=self.proj_bias)
        norm = partial(NORM_LAYERS[self.norm_layer], self.norm_eps, self.precision)
        if self.qk_norm:
            self.q_norm, self.k_norm = norm(), norm()
        if self.scale_norm:
            self.norm = norm()

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        """Returns the attended tokens, `features` wide."""
        batch, tokens, _ = x.shape
        head_dim = self.features // self.num_heads
        if self.precision.stored is None:
            qkv = self.qkv(x)
            values = qkv[..., 2 * self.features :]
            # (B, N, 3 H E) -> (3, B, H, N, E)
            q, k, v = qkv.reshape(batch, tokens, 3, self.num_heads, head_dim).transpose(2, 0, 3, 1, 4)
        else:
            *_, values = parts = self.qkv.parts(x, 3)
            # (B, N, H E) -> (B, H, N, E) each
            q, k, v = (part.reshape(batch, tokens, self.num_heads, head_dim).swapaxes(1, 2) for part in parts)
        compute_dtype = self.precision.operand_dtype(values)
        q, k, v = (part.astype(compute_dtype) for part in (q, k, v))
        if self.qk_norm:
            q, k = self.q_norm(q).astype(compute_dtype), self.k_norm(k).astype(compute_dtype)
        scale = self.qk_scale or head_dim**-0.5
        if is_dropping(self, self.attn_drop):
            out: Any = self.precision.keep(dropped_attention(self, q, k, v, scale, self.attn_drop))
        else:
            out = dot_product_attention(q, k, v, scale, self.precision)
        out = out.transpose(0, 2, 1, 3).reshape(batch, tokens, self.features)
        out = dropout(self, self.proj(self.norm(out) if self.scale_norm else out), self.proj_drop)
        if self.value_skip:
            out = out + values
        return out
