"""Batches split on an explicit mesh, gradients inside jax.shard_map, and Flax's table of operations."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from vit_flax.config import (
    BeitConfig,
    LucidrainsViTConfig,
    NaFlexViTConfig,
    RopeViTConfig,
    T2TViTConfig,
    ViTConfig,
    WindowedRopeViTConfig,
    WindowedViTConfig,
)
from vit_flax.models import build_model
from vit_flax.parity.tolerances import FLOAT32_GRADIENT

SIZES: dict[str, Any] = {"image_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3, "in_chans": 1}
SMALL = {**SIZES, "patch_size": 4}
SPLITS = {"softsplit_kernels": (3, 3, 3), "token_chan": 4}
FAMILIES: dict[str, ViTConfig] = {
    "plain": ViTConfig(**SMALL, init_values=0.1, dist_token=True, head_dist=True),
    "pooled by attention": ViTConfig(**SMALL, global_pool="map", qk_norm=True, norm_layer="rmsnorm"),
    "pooled": ViTConfig(**SMALL, global_pool="avgmax", fc_norm=True, mlp_layer="swiglu", pos_embed="sinusoid"),
    "rotation": RopeViTConfig(**SMALL, reg_tokens=1, rope_rotate_half=False),
    "learned rotation": RopeViTConfig(**SMALL, rope_type="mixed", rope_rotate_half=False),
    "relative bias": BeitConfig(**SMALL, rel_pos_bias=True, shared_rel_pos_bias=True),
    "padded patches": NaFlexViTConfig(**SMALL),
    "normed patches": LucidrainsViTConfig(**SMALL),
    "windows": WindowedViTConfig(**SMALL, window_size=3, global_attn_indexes=(1,), neck_chans=8),
    "rotated windows": WindowedRopeViTConfig(**SMALL, window_size=1, global_attn_indexes=(1,), pos_embed_grid=(1, 1)),
    "soft splits": T2TViTConfig(**SIZES, **SPLITS),
    "performer": T2TViTConfig(**SIZES, **SPLITS, tokens_type="performer", token_num_heads=1),
    **{
        block: ViTConfig(**SMALL, block=block)
        for block in ("res_post", "parallel_scaling", "parallel_things", "diff", "diff_parallel_scaling")
    },
}
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.standard_normal((8, 8, 8, 1)).astype(np.float32), np.arange(8, dtype=np.int32) % 3
DEVICES = 4
BATCH, SAME = PartitionSpec("data"), PartitionSpec()


def _params(config: ViTConfig) -> Any:
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0), IMAGES)["params"]
    return jax.tree.map(lambda x: (0.3 * RNG.standard_normal(x.shape)).astype(x.dtype), shapes)


def _loss(config: ViTConfig, **fields: Any) -> Any:
    def loss(params: Any, images: Any, labels: Any) -> Any:
        logits: Any = build_model(config, **fields).apply({"params": params}, images)
        return jnp.square(logits - jax.nn.one_hot(labels, 3, dtype=logits.dtype)).mean()

    return jax.value_and_grad(loss)


def _explicit(mesh: Any, config: ViTConfig, **fields: Any) -> Any:
    """Returns what computes loss and gradients of arguments that lie on an explicit mesh."""
    del mesh
    return jax.jit(_loss(config, **fields))


def _shard_mapped(mesh: Any, config: ViTConfig, **fields: Any) -> Any:
    """The same with a part of the batch on each device: JAX adds up the gradients of what is the same on all."""

    def step(params: Any, images: Any, labels: Any) -> Any:
        value, gradients = _loss(config, **fields)(params, images, labels)
        return jax.lax.pmean(value, "data"), jax.tree.map(lambda x: x / DEVICES, gradients)

    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(SAME, BATCH, BATCH), out_specs=(SAME, SAME)))


def _trace(placed: Any, name: str, **fields: Any) -> tuple[Any, Any]:
    """Returns shapes of parameters and gradients on a mesh of no devices: what does not fit shows in the types."""
    mesh = AbstractMesh((DEVICES,), ("data",), axis_types=(AxisType.Explicit,))

    def on(spec: PartitionSpec, x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    config = FAMILIES[name]
    params = jax.tree.map(lambda x: on(SAME, x), _params(config))
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.eval_shape(placed(mesh, config, **fields), params, on(BATCH, IMAGES), on(BATCH, LABELS))
    return params, traced[1]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("placed", [_explicit, _shard_mapped])
def test_every_family_is_differentiated_where_types_say_where_arrays_lie(placed: Any, name: str) -> None:
    params, gradients = _trace(placed, name)
    assert jax.tree.map(lambda x: x.shape, gradients) == jax.tree.map(lambda x: x.shape, params)


@pytest.mark.parametrize("fields", [{"scan": True}, {"remat": "full"}, {"dtype": jnp.bfloat16}])
@pytest.mark.parametrize("placed", [_explicit, _shard_mapped])
def test_scan_remat_and_bfloat16_go_with_it(placed: Any, fields: Any) -> None:
    _trace(placed, "plain", **fields)


@pytest.mark.parametrize("name", ["plain", "diff_parallel_scaling", "performer"])
def test_operations_are_tabulated(name: str) -> None:
    table = build_model(FAMILIES[name]).tabulate(jax.random.key(0), IMAGES, compute_flops=True)
    assert "flops" in table


def test_loss_and_gradients_are_those_of_one_device() -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _compare_on_devices() -> None:
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Explicit,))
    config = FAMILIES["relative bias"]
    host = (_params(config), IMAGES, LABELS)
    expected = jax.tree.leaves(jax.jit(_loss(config))(*host))
    specs = (SAME, BATCH, BATCH)
    args = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(host, specs, strict=True)]
    for placed in (_explicit, _shard_mapped):
        found = placed(mesh, config, scan=True, remat="full")(*args)
        for value, other in zip(expected, jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(other, value, **FLOAT32_GRADIENT, err_msg=placed.__name__)
    logits = jax.eval_shape(build_model(config).apply, {"params": args[0]}, args[1])
    assert logits.sharding.spec[0] == "data", logits.sharding


if __name__ == "__main__":
    _compare_on_devices()
