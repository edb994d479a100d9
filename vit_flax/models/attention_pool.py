"""Pooling by attention from a learned query."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vit_flax.models.attention import dot_product_attention
from vit_flax.models.key_mask import mask_keys
from vit_flax.models.linear import Linear, matmul
from vit_flax.models.mlp import Mlp
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.placed import as_batch_of, reshape
from vit_flax.models.precision import Precision
from vit_flax.models.qkv import split_qkv


class AttentionPool(nn.Module):
    """Pools tokens by attention of a learned query, then a residual MLP.

    Queries, keys and values share one kernel, as they do in most checkpoints.

    Reference: timm.layers.AttentionPoolLatent; SigLIP's MultiheadAttentionPoolingHead; big_vision's MAPHead.
    """

    num_heads: int
    mlp_dim: int
    activation: str = "gelu"
    norm_layer: str = "layernorm"
    norm_eps: float | None = 1e-6
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None) -> Float[Array, "b d"]:
        """Returns one vector an image, of the tokens that `mask` does not hide."""
        batch, _, dim = x.shape
        head_dim = dim // self.num_heads
        latent = self.param("latent", nn.initializers.normal(dim**-0.5), (1, 1, dim), self.precision.params)
        kernel, bias = Projections(dim, self.precision, name="qkv")()
        dtype = self.precision.operand_dtype(x, kernel)
        product = partial(matmul, dtype=dtype, precision=self.precision.products)
        q = product(latent, kernel[:, :dim]) + bias[:dim]
        kv = product(x, kernel[:, dim:]) + bias[dim:]
        # (1, 1, D) -> (B, H, 1, E)
        q = q.reshape(1, self.num_heads, 1, head_dim)
        q = jnp.broadcast_to(q, (batch, *q.shape[1:]), out_sharding=as_batch_of(x, 4))
        k, v = (part.astype(dtype) for part in split_qkv(kv, self.num_heads, parts=2))
        q = q.astype(dtype)
        if mask is not None:
            q, k = mask_keys(q, k, mask, head_dim**-0.5)
        out: Any = dot_product_attention(q, k, v, head_dim**-0.5, self.precision)
        # (B, H, 1, E) -> (B, 1, D)
        out = Linear(dim, precision=self.precision, name="proj")(reshape(out, batch, 1, dim))
        normed = NORM_LAYERS[self.norm_layer](self.norm_eps, self.precision, name="norm")(out)
        out = out + Mlp(self.mlp_dim, activation=self.activation, precision=self.precision, name="mlp")(normed)
        return out[:, 0]


class QueryPool(nn.Module):
    """Pools tokens by attention of a learned query that no layer projects.

    Reference: transformers' Aimv2AttentionPoolingHead, arXiv 2411.14402.
    """

    num_heads: int
    qkv_bias: bool = False
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None) -> Float[Array, "b d"]:
        """Returns one vector an image, of the tokens that `mask` does not hide."""
        batch, _, dim = x.shape
        scale = (dim // self.num_heads) ** -0.5
        latent = self.param("latent", nn.initializers.normal(0.02), (1, 1, dim), self.precision.params)
        kv = Linear(2 * dim, self.qkv_bias, self.precision, name="kv")(x)
        dtype = self.precision.operand_dtype(x, kv)
        k, v = (part.astype(dtype) for part in split_qkv(kv, self.num_heads, parts=2))
        q = latent.reshape(1, self.num_heads, 1, -1)
        q = jnp.broadcast_to(q, (batch, *q.shape[1:]), out_sharding=as_batch_of(x, 4)).astype(dtype)
        if mask is not None:
            q, k = mask_keys(q, k, mask, scale)
        out: Any = dot_product_attention(q, k, v, scale, self.precision)
        # (B, H, 1, E) -> (B, D)
        return Linear(dim, True, self.precision, name="proj")(reshape(out, batch, dim))


class Projections(nn.Module):
    """Holds the kernel (D, 3 D) and bias of queries, keys and values, for two inputs to share."""

    features: int
    precision: Precision = Precision()

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "d e"], Float[Array, "e"]]:
        """Returns kernel and bias."""
        shape = (self.features, 3 * self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape, self.precision.params)
        return kernel, self.param("bias", nn.initializers.zeros, shape[1:], self.precision.params)
