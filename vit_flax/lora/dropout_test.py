"""Dropout of adapters has the mean of the merged model; parity_tests check that rate 0 is the merged model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from vit_flax.config import ViTConfig
from vit_flax.lora.adapters import begin, merged
from vit_flax.lora.config import LoraConfig
from vit_flax.lora.dropout import applied_with_dropout, beside_kernels
from vit_flax.models import VisionTransformer, build_model
from vit_flax.models.shapes import expected_shapes

CONFIG = ViTConfig(image_size=(8, 8), patch_size=(4, 4), in_chans=1, embed_dim=8, depth=2, num_heads=2, num_classes=3)
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)


def adapted(lora: LoraConfig) -> tuple[Any, Any]:
    rng, shapes = np.random.default_rng(1), expected_shapes(build_model(CONFIG))
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    trained, frozen = begin(jax.random.key(1), unflatten_dict(flat, sep="/"), lora)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.3), trained), frozen


def apply(model: VisionTransformer, frozen: Any, trained: Any, lora: LoraConfig, rate: float, key: jax.Array) -> Any:
    with applied_with_dropout(rate):
        params = beside_kernels(frozen, trained, lora)
        return model.apply({"params": params}, IMAGES, rngs={"dropout": key})


def test_the_mean_is_the_merged_model() -> None:
    lora = LoraConfig(targets="head", modules_to_save=(), rank=2)  # linear in the adapter: no nonlinearity follows
    trained, frozen = adapted(lora)
    model = build_model(CONFIG)
    expected = np.asarray(jax.jit(model.apply)({"params": merged(frozen, trained, lora)}, IMAGES))
    keys = jax.random.split(jax.random.key(2), 2000)
    logits = jax.jit(jax.vmap(lambda key: apply(model, frozen, trained, lora, 0.3, key)))(keys)
    spread = jnp.std(logits, axis=0)
    assert spread.min() > 1e-3
    assert (np.abs(jnp.mean(logits, axis=0) - expected) < 5 * spread / np.sqrt(len(keys))).all()


def test_what_it_does_not_act_on_is_refused() -> None:
    for lora, scan, said in (
        (LoraConfig(targets="patch_embed/proj"), False, "lora.exclude=patch_embed/proj leaves it out"),
        (LoraConfig(targets="blocks_0/attn/q"), True, "set scan=False"),
    ):
        trained, frozen = adapted(lora)
        with pytest.raises(ValueError, match=said):
            beside_kernels(frozen, trained, lora, scan)
