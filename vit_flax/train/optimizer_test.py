"""Muon: orthogonalised updates of matrices at the size of Adam's, Adam for the rest; moments sharded as parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_flax.config import ViTConfig
from vit_flax.parity.tolerances import FLOAT32_RELATIVE, FLOAT32_ROUNDING
from vit_flax.train.compilation import abstract_state
from vit_flax.train.config import OptimizerConfig, TrainConfig
from vit_flax.train.optimizer import make_optimizer, scale_by_muon

TINY = ViTConfig(image_size=(8, 8), patch_size=(4, 4), in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=10)
NUMBERS = OptimizerConfig(name="muon", momentum=0.95, learning_rate=1e-2, weight_decay=0.1)


def test_matrices_become_orthogonal_and_the_rest_is_adams() -> None:
    rng = np.random.default_rng(0)
    grads = {"kernel": jnp.asarray(rng.standard_normal((24, 16))), "bias": jnp.asarray(rng.standard_normal(16))}
    muon, adam = scale_by_muon(NUMBERS), optax.scale_by_adam(NUMBERS.b1, NUMBERS.b2, NUMBERS.eps, nesterov=True)
    ours: Any = muon.update(grads, muon.init(grads), grads)[0]
    theirs: Any = adam.update(grads, adam.init(grads), grads)[0]
    np.testing.assert_allclose(ours["bias"], theirs["bias"], rtol=FLOAT32_ROUNDING)
    kernel = np.asarray(ours["kernel"])
    left, _, right = np.linalg.svd(np.asarray(grads["kernel"]), full_matrices=False)
    singular = np.diag(left.T @ kernel @ right.T) / (0.2 * np.sqrt(24))
    # five steps of the iteration leave every singular value near 1, and the singular vectors as they are
    assert ((singular > 0.6) & (singular < 1.3)).all(), singular
    rebuilt = 0.2 * np.sqrt(24) * (left * singular) @ right
    np.testing.assert_allclose(kernel, rebuilt, atol=FLOAT32_RELATIVE)


def test_weight_decay_and_learning_rate_are_those_of_the_config() -> None:
    config = TrainConfig(model=TINY, steps=2, optimizer=NUMBERS).replace({"schedule.name": "constant"}).resolve(1000)
    params = {"head": {"kernel": jnp.ones((16, 10)), "bias": jnp.ones(10)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(config, params)
    updates: Any = optimizer.update(zeros, optimizer.init(params), params)[0]
    np.testing.assert_allclose(
        updates["head"]["kernel"], -NUMBERS.learning_rate * NUMBERS.weight_decay, rtol=FLOAT32_RELATIVE
    )
    np.testing.assert_array_equal(updates["head"]["bias"], 0)  # biases do not decay


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_belongs_to_a_parameter_lies_as_it_does(name: str) -> None:
    config = TrainConfig(model=TINY, steps=2, optimizer=OptimizerConfig(name=name)).resolve(1000)
    mesh = jax.sharding.AbstractMesh((1, 4, 1), ("data", "fsdp", "tensor"))
    state = abstract_state(config, mesh)
    specs = {leaf.shape: leaf.sharding.spec for leaf in jax.tree.leaves(state.params) if leaf.ndim == 2}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 2]
    assert len(moments) == (2 if name == "adamw" else 1) * len(
        [x for x in jax.tree.leaves(state.params) if x.ndim == 2]
    )
    assert all(leaf.sharding.spec == specs[leaf.shape] for leaf in moments)
