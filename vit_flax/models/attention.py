"""Multi-head self-attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_flax.models.attention_backends import backend_for, dot_product_attention, for_tpu
from vit_flax.models.drop import dropout, is_dropping
from vit_flax.models.linear import Linear
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.placed import reshape
from vit_flax.models.position import Positions
from vit_flax.models.precision import HIGHEST, Precision, accumulator_dtype
from vit_flax.models.qkv import merge_heads, split_qkv
from vit_flax.models.softmax_attention import attention_weights, heads_dot

WEIGHTS = "attention"  # the collection of attention's weights


def dropped_attention(
    module: nn.Module, q: Array, k: Array, v: Array, scale: float, rate: float, bias: Array | None = None
) -> Array:
    """Computes `dot_product_attention` with dropout of its weights, all in float32 or wider."""
    wide = accumulator_dtype(q.dtype)
    weights = attention_weights(q, k, scale, bias)
    return heads_dot(dropout(module, weights, rate), v.astype(wide), 3, 2, HIGHEST)


class Attention(nn.Module):
    """Multi-head self-attention with an output projection.

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
    head_dim: int | None = None  # width of q, k and v of a head; None: features / num_heads
    key_bias: bool | None = None  # None: as qkv_bias, which else is of queries and values
    use_proj: bool = True
    position: Positions = Positions()  # how it learns where a token is

    def setup(self) -> None:
        """Builds the two projections and the norms."""
        if self.head_dim is None and self.features % self.num_heads:
            raise ValueError(f"attention width {self.features} is not divisible by num_heads {self.num_heads}")
        width = self.num_heads * self.head_width
        linear = partial(Linear, precision=self.precision)
        key_bias = self.qkv_bias if self.key_bias is None else self.key_bias
        self.qkv = linear(3 * width, use_bias=self.qkv_bias and key_bias)
        self.biases = None if self.qkv_bias == key_bias else self._own_biases(width, key_bias)
        if self.use_proj:
            self.proj = linear(self.features, use_bias=self.proj_bias)
        norm = partial(NORM_LAYERS[self.norm_layer], self.norm_eps, self.precision)
        if self.qk_norm:
            self.q_norm, self.k_norm = norm(), norm()
        if self.scale_norm:
            self.norm = norm()
        self.position.setup_attention(self)

    @nn.nowrap
    def _own_biases(self, width: int, key_bias: bool) -> list[Array]:
        there = {"q_bias": self.qkv_bias, "k_bias": key_bias, "v_bias": self.qkv_bias}
        zeros, dtype = nn.initializers.zeros, self.precision.params
        return [
            self.param(name, zeros, (width,), dtype) if has else jnp.zeros((width,), dtype)
            for name, has in there.items()
        ]

    @property
    def head_width(self) -> int:
        """Width of q, k and v of a head."""
        return self.head_dim or self.features // self.num_heads

    def _project(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """Returns the (B, H, N, E) heads of queries, keys and values, and the values (B, N, H E)."""
        if self.precision.stored is None:
            qkv = self.qkv(x)
            qkv = qkv if self.biases is None else qkv + jnp.concatenate(self.biases)
            q, k, v = split_qkv(qkv, self.num_heads)
            return q, k, v, qkv[..., 2 * self.num_heads * self.head_width :]
        parts = self.qkv.parts(x, 3, self.num_heads)  # (B, N, H, E)
        if self.biases is not None:
            biases = (bias.reshape(self.num_heads, -1) for bias in self.biases)
            parts = [self.precision.cast_to_stored(part + bias) for part, bias in zip(parts, biases, strict=True)]
        q, k, v = (part.swapaxes(1, 2) for part in parts)
        return q, k, v, reshape(parts[2], *x.shape[:-1], -1)

    def __call__(self, x: Float[Array, "b n d"], given: Array | np.ndarray | None = None) -> Float[Array, "b m e"]:
        """Returns the attended tokens, `features` wide; `given` is what `position` made for this block."""
        return self.position.unpartition(self._attend(self.position.partition(x), given))

    def _attend(self, x: Float[Array, "b n d"], given: Array | np.ndarray | None) -> Float[Array, "b m e"]:
        if self._takes_rows(x):
            return self._from_rows(x)
        q, k, v, values = self._project(x)
        dtype = self.precision.operand_dtype(values)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        scale = self.qk_scale or self.head_width**-0.5
        q, k, bias = self.position.apply(self, q, k, scale, given)
        q, k, v = (part.astype(dtype) for part in (q, k, v))
        record_weights(self, lambda: attention_weights(q, k, scale, bias))
        if is_dropping(self, self.attn_drop):
            out: Any = self.precision.cast_to_stored(dropped_attention(self, q, k, v, scale, self.attn_drop, bias))
        else:
            out = dot_product_attention(q, k, v, scale, self.precision, bias)
        if self.precision.stored is not None and self.use_proj and not self.scale_norm:
            return self._finish(self.proj.join(out.swapaxes(1, 2)), values)
        return self._leave(merge_heads(out), values)

    @nn.nowrap
    def _takes_rows(self, x: Array) -> bool:
        """Whether a kernel mixes what the projection writes as it lies, for nothing is done to it in between."""
        is_plain = self.position.is_identity and not self.qk_norm and not is_dropping(self, self.attn_drop)
        if not is_plain or self.precision.stored is None or self.is_mutable_collection(WEIGHTS):
            return False
        shape = (x.shape[0], self.num_heads, x.shape[1], self.head_width)
        dtype = jnp.dtype(self.precision.operand_dtype(x))  # which may be a name
        takes = for_tpu() and dtype.name in ("float32", "bfloat16")  # else the back end says what is wrong
        return takes and backend_for(shape, dtype, self.precision, True) == "rows"

    def _from_rows(self, x: Array) -> Array:
        from vit_flax.models.row_attention import row_attention  # Pallas takes as long to import as all of Flax

        # the kernel that has the gradient on the chip adds it up for the bias, unless values go past it
        bias_of_kernel = not self.value_skip and self.biases is None and self.qkv_bias
        qkv = self.qkv(x, freeze_bias=bias_of_kernel)
        qkv = qkv if self.biases is None else self.precision.cast_to_stored(qkv + jnp.concatenate(self.biases))
        scale = self.qk_scale or self.head_width**-0.5
        operand = qkv.astype(self.precision.operand_dtype(qkv))
        bias = self.qkv.get_variable("params", "bias") if bias_of_kernel else None
        out = row_attention([operand], self.num_heads, scale, self.precision.products, bias)
        out = self.precision.cast_to_stored(out)
        return self._leave(out, qkv[..., 2 * self.num_heads * self.head_width :])

    def _leave(self, out: Array, values: Array) -> Array:
        out = self.norm(out) if self.scale_norm else out
        return self._finish(self.proj(out) if self.use_proj else out, values)

    def _finish(self, out: Array, values: Array) -> Array:
        out = dropout(self, out, self.proj_drop) if self.use_proj else out
        return out + values if self.value_skip else out


def record_weights(module: nn.Module, weights: Callable[[], Array]) -> None:
    """Sows the weights (B, H, N, N) of an attention where the caller makes the collection `WEIGHTS` mutable."""
    if module.is_mutable_collection(WEIGHTS) and not module.is_initializing():
        module.sow(WEIGHTS, "weights", weights())
