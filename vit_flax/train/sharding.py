"""Sharding: one mesh of three axes, ordered rules for parameters, constraints on activations.

`data` splits the batch, `fsdp` the batch and the parameters, `tensor` heads and hidden layers. Models know nothing of
this: `partitioned` tells the compiler from outside what it does not find by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from vit_flax.config import ModelConfig, TwoTowersConfig
from vit_flax.config.part import Axes, ShardingRule
from vit_flax.microbatches import Device
from vit_flax.models.kernel_sharding import AnyMesh, sharded_kernels
from vit_flax.models.linear import Linear, matmul
from vit_flax.train.config import MeshConfig, TrainConfig
from vit_flax.train.patterns import assign

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that split a batch
# In the mesh's order: with ("tensor", "fsdp") for kernels and positions, XLA of jax 0.10.2 computes wrong tokens on a
# mesh of 2 x 2 x 2 CPU devices; sharding_test.py would notice.
_BOTH = ("fsdp", "tensor")
_TOWER = "((image|text)/)?"  # of a two-tower model

# (pattern, axes, other axes ...): the first rule whose pattern matches a parameter's whole name wins, and of its axes
# the first that divide the shape. Axes belong to the last axes of the shape.
RULES: tuple[ShardingRule, ...] = (
    # by rows: its columns are q, k and v one after the other, so a part of them is not a part of the heads
    (rf"{_TOWER}blocks_\d+/(.*/)?qkv/kernel", (_BOTH, None)),
    (rf"{_TOWER}blocks_\d+/(.*/)?fc1/kernel", ("fsdp", "tensor")),
    (rf"{_TOWER}blocks_\d+/(.*/)?fc1/bias", ("tensor",)),
    (rf"{_TOWER}blocks_\d+/(.*/)?(proj|fc2)/kernel", ("tensor", "fsdp")),
    (rf"{_TOWER}blocks_\d+/(.*/)?kernel", (_BOTH, None)),
    # small beside the blocks: however it divides
    (r"(.*/)?kernel", (_BOTH, None), (_BOTH,), ("fsdp", None), ("fsdp",), ("tensor",), ()),
    (rf"{_TOWER}pos_embed", (_BOTH,), ("fsdp",), ()),
    # by width: a part of the rows is not a part of the texts
    (r"text/token_embed", (_BOTH,), ("fsdp",), ()),
    (r".*", ()),
)


def make_mesh(config: MeshConfig, devices: Sequence[Device] | None = None) -> Mesh:
    """Returns the mesh of the devices, those of one process beside each other along the batch.

    Raises:
        ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    given = math.prod(size for size in sizes if size != -1)
    if len(devices) % given or (-1 not in sizes and given != len(devices)):
        named = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
        raise ValueError(f"a mesh of {named} does not divide {len(devices)} devices")
    sizes = [len(devices) // given if size == -1 else size for size in sizes]
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered, dtype=object).reshape(sizes), AXES)


def check_mesh(config: TrainConfig, mesh: AnyMesh) -> None:
    """Raises ValueError, in one line, when a step of the config does not run on the mesh, which may divide nothing."""
    shards, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]
    part = config.data.batch_size // config.accumulation
    if part % shards:
        raise ValueError(
            f"the mesh's data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} does not divide the batch of {part}"
            + (f" ({config.data.batch_size} in {config.accumulation} parts)" if config.accumulation > 1 else "")
        )
    if tensor > 1 and config.lora is not None and config.lora.dropout:
        # `partitioned` computes a projection by heads itself, and the adapters beside it would be left out
        raise ValueError(
            f"lora.dropout does not run on a mesh with tensor={tensor}: set mesh.tensor=1 or lora.dropout=0"
        )
    sizes = [("num_heads", config.model.num_heads), ("the hidden width", config.model.mlp_dim)]
    if isinstance(config.model, TwoTowersConfig):
        text = config.model.text
        sizes += [("text_num_heads", text.num_heads), ("the text tower's hidden width", text.mlp_dim)]
    for name, value in sizes:
        if value % tensor:
            raise ValueError(f"the mesh's tensor={tensor} does not divide {name} {value} of the model")


def _divides(axes: Axes, shape: Sequence[int], mesh: AnyMesh) -> bool:
    if len(axes) > len(shape):
        return False
    last = shape[len(shape) - len(axes) :]
    return all(size % _size(axis, mesh) == 0 for axis, size in zip(axes, last, strict=True))


def _size(axis: str | Sequence[str] | None, mesh: AnyMesh) -> int:
    names = () if axis is None else (axis,) if isinstance(axis, str) else axis
    for name in names:
        if name not in mesh.shape:
            raise ValueError(f"a sharding rule names the axis {name!r}; the mesh has {', '.join(mesh.shape)}")
    return math.prod(mesh.shape[name] for name in names)


def sharding_rules(config: ModelConfig) -> tuple[ShardingRule, ...]:
    """Returns the rules for a model's parameters: those of its config's parts before those of all models."""
    if isinstance(config, TwoTowersConfig):
        parts = (*config.image.tokens.sharding, *config.image.position.sharding)
        return (*((f"image/{pattern}", *axes) for pattern, *axes in parts), *RULES)
    return (*config.tokens.sharding, *config.position.sharding, *RULES)


def parameter_specs(
    params: PyTree, mesh: AnyMesh, rules: Sequence[ShardingRule] | None = None
) -> dict[str, PartitionSpec]:
    """Returns each parameter's PartitionSpec by name.

    Raises:
        ValueError: no rule matches a parameter, or the mesh divides it in none of the ways its rule allows.
    """
    shapes = {"/".join(_names(path)): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    table = [(pattern, choices) for pattern, *choices in (RULES if rules is None else rules)]
    return {name: _split(name, shapes[name], choices, mesh) for name, choices in assign(table, shapes).items()}


def _split(name: str, shape: Sequence[int], choices: Sequence[Axes], mesh: AnyMesh) -> PartitionSpec:
    for axes in choices:
        if _divides(axes, shape, mesh):
            return PartitionSpec(*[None] * (len(shape) - len(axes)), *axes)
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    last = shape[max(0, len(shape) - len(choices[0])) :]
    wrong = [f"{n} by {_size(axis, mesh)}" for n, axis in zip(last, choices[0], strict=False) if n % _size(axis, mesh)]
    raise ValueError(f"the mesh {sizes} does not divide {name} {tuple(shape)}: {', '.join(wrong) or 'too few axes'}")


def _names(path: Any) -> list[str]:
    return [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]


def state_shardings(state: PyTree, mesh: AnyMesh, rules: Sequence[ShardingRule] | None = None) -> PyTree:
    """Returns the sharding of each array of a training state: optimiser moments are sharded as their parameters.

    `state` has `params` and perhaps `teacher` and `frozen`; any other leaf belongs to the parameter that its path ends
    with, if their shapes agree. The rest is on every device.
    """
    trees = [("params", state.params), *((name, getattr(state, name, None)) for name in ("teacher", "frozen"))]
    specs = {tree: parameter_specs(params, mesh, rules) for tree, params in trees if params is not None}
    shapes = {"/".join(_names(path)): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}

    def place(path: Any, leaf: Any) -> NamedSharding:
        names = _names(path)
        if names[0] in specs:
            return NamedSharding(mesh, specs[names[0]]["/".join(names[1:])])
        for start in range(len(names)):
            name = "/".join(names[start:])
            if shapes.get(name) == leaf.shape:
                return NamedSharding(mesh, specs["params"][name])
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Returns the sharding of a batch along its first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def data_share(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): this process reads part `index` of every batch, which has `count` parts.

    It is its place among the processes, unless `tensor` spans several of them: those read the same rows.
    """
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    indices = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    starts = sorted({index[0].indices(rows)[0] for index in indices if index})
    if rows % len(starts) or starts != list(range(starts[0], starts[0] + len(starts))):
        raise ValueError(f"this process holds rows {starts} of {rows}, which are no whole part of a batch")
    return starts[0] // len(starts), rows // len(starts)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a global batch on its devices, from this process's rows of it."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def place_params(params: PyTree, shardings: PyTree) -> PyTree:
    """Transfers parameters from host memory to devices, each device its own shard alone."""

    def place(value: Any, sharding: NamedSharding) -> jax.Array:
        value = np.asarray(value)
        # a copy for each device: the CPU would alias the host's memory, and a donated state is overwritten
        return jax.make_array_from_callback(value.shape, sharding, lambda index: np.array(value[index]))

    return jax.tree.map(place, params, shardings)


def bytes_per_device(tree: PyTree) -> int:
    """Returns the bytes that one device holds of a tree of arrays or shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


@contextmanager
def partitioned(mesh: AnyMesh) -> Iterator[None]:
    """Constrains the activations of models traced inside: sharded by batch, in attention by heads as well.

    Two things the compiler does not find (read from its output, on the CPU and for TPUs): without the first it splits
    tokens by width after a kernel that is, and gathers them again in every block; without the second it gathers q, k
    and v of all heads, because a slice of the fused projection's columns is not a slice of the heads. Parameters are
    exchanged instead, which are smaller.
    """
    if mesh.size == 1:
        yield
        return
    with nn.intercept_methods(_intercept(mesh)), sharded_kernels(mesh, BATCH, "tensor"):
        yield


def _intercept(mesh: AnyMesh) -> Any:
    def constrain(x: Array, *axes: Any) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

    def project_by_heads(module: Linear, x: Array, freeze_bias: bool = False) -> Array:
        # one product with the kernel seen as (D, 3, H E), whose last axis is split by heads
        kernel, bias = module.get_variable("params", "kernel"), module.get_variable("params", "bias")
        policy = module.precision
        kernel = constrain(kernel.reshape(kernel.shape[0], 3, -1), None, None, "tensor")
        y: Any = matmul(x, kernel, policy.operand_dtype(x, kernel), policy.products)
        y = constrain(y, BATCH, None, None, "tensor")  # (B, N, 3, H E)
        if bias is not None:
            bias = jax.lax.stop_gradient(bias) if freeze_bias else bias
            y = y + constrain(bias.reshape(3, -1), None, "tensor")
        return policy.cast_to_stored(y).reshape(*x.shape[:-1], -1)

    def by_batch(x: Any) -> Any:
        return constrain(x, BATCH, *[None] * (x.ndim - 1)) if isinstance(x, jax.Array) and x.ndim > 1 else x

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name not in ("__call__", "parts") or module.is_initializing():
            return call(*args, **kwargs)
        if module.name == "qkv" and isinstance(module, Linear) and _splits_heads(module, mesh):
            y = project_by_heads(module, args[0], **kwargs)
            if context.method_name == "__call__":
                return y
            _, count, heads = args
            return [part.reshape(*part.shape[:-1], heads, -1) for part in jnp.split(y, count, axis=-1)]
        level = len(module.path) - (module.path[:1] in (("image",), ("text",)))
        if level > 1 or context.method_name != "__call__":
            return call(*args, **kwargs)
        # the model's own parts, and its blocks where each is applied by itself
        return by_batch(call(*map(by_batch, args), **kwargs))

    return intercept


def _splits_heads(module: Linear, mesh: AnyMesh) -> bool:
    heads = module.parent.num_heads  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return mesh.shape["tensor"] > 1 and heads % mesh.shape["tensor"] == 0


def default_mesh(config: ModelConfig, devices: int) -> MeshConfig:
    """Returns a mesh that splits the parameters by as many devices as divide the blocks' kernels, the rest by batch.

    Of more than 16, at most by half: where one axis spans them all, the TPU's compiler gathers parameters and scatters
    gradients by all-reduces, which carry twice the bytes.
    """
    most = devices if devices <= 16 else devices // 2
    fsdp = math.gcd(devices, config.embed_dim)
    while fsdp > 1 and (config.mlp_dim % fsdp or devices % fsdp or fsdp > most):
        fsdp //= 2
    return MeshConfig(data=-1, fsdp=max(fsdp, 1))
