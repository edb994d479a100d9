"""A float32 model has no implicit promotion: both passes are traced under JAX's strict promotion of dtypes.

In bfloat16 promotion is intended, where stored bfloat16 meets a float32 sum. Strict promotion of ranks does not hold:
biases and scales (d,) are added to tokens (b, n, d) in every layer, as in linen's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from vit_flax.config import BeitConfig, LucidrainsViTConfig, NaFlexViTConfig, RopeViTConfig, T2TViTConfig, ViTConfig
from vit_flax.models import build_model
from vit_flax.models.precision import compiled_for
from vit_flax.models.tokens_to_token import soft_split

SMALL: dict[str, Any] = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "in_chans": 1}
MODELS = {
    "plain": ViTConfig(**SMALL, num_classes=5, init_values=0.1, qk_norm=True, block="diff"),
    "pooled by attention": ViTConfig(**SMALL, num_classes=5, global_pool="map", class_token=False, mlp_layer="swiglu"),
    "soft splits": T2TViTConfig(
        **{name: v for name, v in SMALL.items() if name != "patch_size"},
        token_chan=4,
        tokens_type="performer",
        token_num_heads=1,
    ),
    "normalised patches": LucidrainsViTConfig(**SMALL, num_classes=5),
    "rotated": RopeViTConfig(**SMALL, num_classes=5),
    "relative bias": BeitConfig(**SMALL, num_classes=5, shared_rel_pos_bias=True),
    "padded": NaFlexViTConfig(**SMALL),
}


@pytest.mark.parametrize("name", MODELS)
def test_dtypes_are_converted_where_it_is_written(name: str) -> None:
    images = jnp.zeros((2, 16, 16, 1), jnp.float32)
    with compiled_for("tpu"):
        model = build_model(MODELS[name])
        params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        gradient = jax.value_and_grad(lambda params: jnp.sum(model.apply({"params": params}, images)))  # pyright: ignore[reportArgumentType]
        with jax.numpy_dtype_promotion("strict"):
            jax.eval_shape(gradient, params)


def test_calls_are_checked_against_their_annotations() -> None:
    with pytest.raises(TypeCheckError, match="images"):
        soft_split(jnp.zeros((2, 16, 16)), 3)  # no channels


def test_promotion_by_chance_would_be_seen() -> None:
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match="no available implicit dtype promotion"):
        jax.eval_shape(jnp.add, jnp.zeros(3, jnp.bfloat16), jnp.zeros(3, jnp.float32))
