"""The jitted training and evaluation steps, with shardings and donation; the loop and the planner share them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from vit_flax.models import attention_backend
from vit_flax.models.kernel_sharding import AnyMesh
from vit_flax.models.precision import compiled_for
from vit_flax.train.batch import batch_shapes
from vit_flax.train.config import ResolvedConfig
from vit_flax.train.eval_step import eval_step
from vit_flax.train.sharding import (
    batch_sharding,
    check_mesh,
    partitioned,
    place_params,
    sharding_rules,
    state_shardings,
)
from vit_flax.train.state import TrainState, init_params, init_state, model_params
from vit_flax.train.step import train_step


def abstract_state(config: ResolvedConfig, mesh: AnyMesh) -> TrainState:
    """Returns the abstract training state: shapes, dtypes and shardings, nothing allocated.

    Raises:
        ValueError: the mesh does not divide a parameter.
    """
    shapes = jax.eval_shape(partial(init_state, config=config), jax.random.key(0))
    return _with_shardings(shapes, state_shardings(shapes, mesh, config.sharding or sharding_rules(config.model)))


def create_state(config: ResolvedConfig, mesh: Mesh, params: PyTree = None) -> TrainState:
    """Returns the initial state, initialised under its shardings; `params` (in host memory) replace random ones."""
    state = abstract_state(config, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    init = jax.jit(partial(init_state, config=config), out_shardings=shardings)
    if params is None:
        return init(jax.random.key(config.seed))
    return init(jax.random.key(config.seed), params=place_params(params, model_shardings(config, mesh)))


def model_shardings(config: ResolvedConfig, mesh: AnyMesh) -> PyTree:
    """Returns the sharding of each parameter of the model, trained or frozen."""
    shapes = jax.eval_shape(partial(init_params, model=config.model), jax.random.key(0))
    rules = config.sharding or sharding_rules(config.model)
    return state_shardings(TrainState(step=jnp.zeros((), jnp.int32), params=shapes, opt_state=()), mesh, rules).params


def compile_merge(config: ResolvedConfig, mesh: Mesh) -> Callable[[PyTree, PyTree], PyTree]:
    """Returns the function (trained parameters or their average, frozen ones) -> the model's parameters."""
    if config.lora is None:
        return partial(model_params, config=config)
    return jax.jit(partial(model_params, config=config), out_shardings=model_shardings(config, mesh))


def compile_step(config: ResolvedConfig, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted training step, (state, batch) -> (state, scalars), which donates the state it is given.

    Raises ValueError when the mesh divides neither batch, heads nor parameters.
    """
    check_mesh(config, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        with _target(mesh), partitioned(mesh), attention_backend(config.attention):
            return train_step(state, batch, config)

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
        compiler_options=_compiler_options(mesh),
    )


def compile_eval(config: ResolvedConfig, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted evaluation step, (params, batch) -> sums."""
    shardings = model_shardings(config, mesh)

    def step(params: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        with _target(mesh), partitioned(mesh), attention_backend(config.attention):
            return eval_step(params, batch, config)

    everywhere = NamedSharding(mesh, PartitionSpec())
    in_shardings = (shardings, batch_sharding(mesh))
    return jax.jit(step, in_shardings=in_shardings, out_shardings=everywhere, compiler_options=_compiler_options(mesh))


def lower_step(config: ResolvedConfig, mesh: Mesh) -> jax.stages.Lowered:
    """Returns the lowered training step, from shapes alone; the mesh's devices need not exist."""
    batch = _with_shardings(batch_shapes(config), batch_sharding(mesh))
    return compile_step(config, mesh).lower(abstract_state(config, mesh), batch)


def _target(mesh: Mesh) -> AbstractContextManager[None]:
    device = mesh.devices.flat[0]
    return compiled_for(device.platform, mesh.size, device.device_kind)


def _compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """Returns compiler options: on TPUs, kernels are all-gathered before their products.

    By default the compiler overlaps the gather with partial products (windowed einsum) and accumulates their sums, as
    large as the activations, in float32 through the memory: four times the bytes of ViT-B on 16 v5e.
    """
    if mesh.size == 1 or mesh.devices.flat[0].platform != "tpu":
        return None
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 2**20}


def _with_shardings(shapes: Any, shardings: PyTree) -> Any:
    def attach(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: attach(leaf, shardings), shapes)
    return jax.tree.map(attach, shapes, shardings)
