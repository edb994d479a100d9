"""One value says the dtypes of a model, and reaches every layer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import vit_flax
from vit_flax.config import BeitConfig, LucidrainsViTConfig, NaFlexViTConfig, RopeViTConfig, T2TViTConfig, ViTConfig
from vit_flax.models import Precision, build_model

SMALL: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5, "in_chans": 1,
}  # fmt: skip
T2T: dict[str, Any] = {**SMALL, "patch_size": 16, "token_chan": 4}
MODELS: dict[str, ViTConfig] = {
    **{
        block: ViTConfig(**SMALL, block=block, qk_norm=block != "res_post")
        for block in ("standard", "res_post", "parallel_things", "parallel_scaling", "diff", "diff_parallel_scaling")
    },
    "map pool, SwiGLU": ViTConfig(**SMALL, global_pool="map", class_token=False, mlp_layer="swiglu"),
    "T2T": T2TViTConfig(**T2T),
    "T2T performer": T2TViTConfig(**T2T, tokens_type="performer", token_num_heads=1),
    "lucidrains": LucidrainsViTConfig(**SMALL),
    "rope": RopeViTConfig(**SMALL),
    "beit": BeitConfig(**SMALL),
    "naflex": NaFlexViTConfig(**SMALL),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_gets_the_models_value(name: str) -> None:
    policy = Precision(params=jnp.bfloat16, compute=jnp.float16, products=lax.Precision.HIGH)
    model = build_model(MODELS[name], precision=policy)
    seen = {}

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if hasattr(module, "precision"):
            seen[module.path] = module.policy if module is model or not module.path else module.precision
        assert not module.path or not hasattr(module, "param_dtype")
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.config.image_size, 1)))["params"]
    assert len(seen) > 5
    assert {path for path, value in seen.items() if value != policy} == set()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_the_models_own_fields_say_the_same() -> None:
    model = vit_flax.create_model("vit_tiny_patch16_224", dtype=jnp.bfloat16, precision=lax.Precision.HIGH)
    assert model.policy.compute == jnp.bfloat16
    assert model.policy.products == lax.Precision.HIGH
    assert model.clone(dtype=None).policy == Precision(products=lax.Precision.HIGH)
    assert model.clone(param_dtype=jnp.float16).policy.params == jnp.float16
    whole = model.clone(precision=Precision(params=jnp.float16, compute=jnp.float16))
    assert (whole.policy.params, whole.policy.compute) == (jnp.float16, jnp.bfloat16)
