"""T2T's token block with attention by random features."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vit_flax.models.linear import Linear
from vit_flax.models.mlp import Mlp
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.precision import Precision, accumulator_dtype

EPSILON = 1e-8  # keeps the division by the summed weights finite


class TokenPerformer(nn.Module):
    """Attends over tokens in linear time, by random features, while narrowing them to `features`, then adds an MLP.

    exp(q k) is estimated by products of positive random features. Those are drawn once, stored with the parameters and
    never trained: weights are right for their own features only. The attention has one head and adds its values back.

    Reference: Token_performer of yitu-opensource/T2T-ViT; arXiv 2009.14794.
    """

    features: int
    activation: str = "gelu"
    norm_layer: str = "layernorm"
    norm_eps: float | None = 1e-5
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the layers."""
        norm = NORM_LAYERS[self.norm_layer]
        self.norm1 = norm(self.norm_eps, self.precision)
        self.kqv = Linear(3 * self.features, precision=self.precision)
        self.random_features = self.param("random_features", self._draw)
        self.proj = Linear(self.features, precision=self.precision)
        self.norm2 = norm(self.norm_eps, self.precision)
        self.mlp = Mlp(self.features, activation=self.activation, precision=self.precision)

    @nn.nowrap
    def _draw(self, key: Array) -> Float[Array, "m e"]:
        count = max(1, self.features // 2)
        rows = jax.nn.initializers.orthogonal()(key, (count, self.features), jnp.float32)
        return (rows * count**0.5).astype(self.precision.params)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        """Returns the tokens, `features` wide."""
        x = self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attend(self, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        """Returns the attended tokens plus their values."""
        k, q, v = jnp.split(self.kqv(x), 3, axis=-1)
        k, q = self._positive(k), self._positive(q)
        einsum = partial(jnp.einsum, precision=self.precision.products)
        total = einsum("bnm,bm->bn", q, k.sum(axis=1))[..., None]
        out = einsum("bnm,bme->bne", q, einsum("bnm,bne->bme", k, v)) / (total + EPSILON)
        return v + self.proj(out)

    def _positive(self, x: Float[Array, "b n e"]) -> Float[Array, "b n m"]:
        # in float32 or wider whatever the products' dtype is: exponentials of small differences
        x = x.astype(accumulator_dtype(x.dtype))
        features = lax.stop_gradient(self.random_features)
        exponents = jnp.einsum("bne,me->bnm", x, features, precision=self.precision.products)
        return jnp.exp(exponents - jnp.square(x).sum(-1, keepdims=True) / 2) * features.shape[0] ** -0.5
