"""Every device holds its shard alone, results stay the same, and only necessary arrays are gathered."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from vit_flax.config import ViTConfig
from vit_flax.parity.tolerances import FLOAT32_LIBRARIES
from vit_flax.presets import get_preset
from vit_flax.train.compilation import abstract_state
from vit_flax.train.config import DataConfig, MeshConfig, ResolvedConfig, TrainConfig
from vit_flax.train.sharding import AXES, bytes_per_device, check_mesh, default_mesh, make_mesh, parameter_specs

SMALL = ViTConfig(image_size=(16, 16), patch_size=(4, 4), embed_dim=256, depth=1, num_heads=8, num_classes=8)


def config(**changes) -> ResolvedConfig:
    return TrainConfig(model=SMALL, steps=10, data=DataConfig(batch_size=16)).resolve(1000).replace(changes)


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), AXES)


@pytest.mark.parametrize(
    ("preset", "sizes"), [("vit_base_patch16_224", (1, 8, 1)), ("vit_large_patch16_224", (1, 1, 8))], ids=str
)
def test_a_device_holds_an_eighth_of_the_state(preset: str, sizes: tuple[int, int, int]) -> None:
    run = config().replace(model=preset)
    whole = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state(run, abstract_mesh(1, 1, 1)))
    )
    part = bytes_per_device(abstract_state(run, abstract_mesh(*sizes)))
    assert abs(part / (whole / 8) - 1) < 0.05


def test_what_belongs_to_a_parameter_lies_as_it_does() -> None:
    run = config(
        **{"ema": {}, "optimizer.layer_decay": 0.8, "optimizer.clip_norm": 1.0, "optimizer.freeze": ("head/.*",)}
    )
    state = abstract_state(run, abstract_mesh(1, 4, 2))
    kernels = [
        leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("blocks_0/mlp/fc2/kernel")
    ]
    assert len(kernels) == 4  # parameter, average and two moments
    assert set(kernels) == {PartitionSpec("tensor", "fsdp")}
    assert isinstance(state.step.sharding, NamedSharding)
    assert state.step.sharding.spec == PartitionSpec()


def test_what_is_frozen_is_split_and_adapters_are_everywhere() -> None:
    run = config(**{"lora.rank": 4})
    state = abstract_state(run, abstract_mesh(1, 8, 1))
    assert state.frozen["blocks_0"]["attn"]["qkv"]["kernel"].sharding.spec[0] == ("fsdp", "tensor")
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(state.params["blocks_0"])} == {PartitionSpec(None, None)}
    with pytest.raises(ValueError, match=r"lora.dropout does not run on a mesh with tensor=2: set mesh.tensor=1"):
        check_mesh(config(**{"lora.dropout": 0.1}), abstract_mesh(1, 1, 2))


def test_own_rules_and_what_they_miss() -> None:
    params = {"blocks_0": {"mlp": {"fc1": {"kernel": jax.ShapeDtypeStruct((6, 4), np.float32)}}}}
    mesh = abstract_mesh(1, 2, 2)
    specs = parameter_specs(params, mesh, ((".*kernel", ("fsdp",)),))
    assert specs == {"blocks_0/mlp/fc1/kernel": PartitionSpec(None, "fsdp")}
    with pytest.raises(ValueError, match="no rule matches blocks_0/mlp/fc1/kernel"):
        parameter_specs(params, mesh, ((".*bias", ()),))
    with pytest.raises(ValueError, match="the axis 'model'"):
        parameter_specs(params, mesh, ((".*", ("model",)),))


@pytest.mark.parametrize("preset", ["t2t_vit_14", "vit_giant_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"])
def test_every_family_divides(preset: str) -> None:
    run = config(model=get_preset(preset).config.replace(num_classes=10))
    state = abstract_state(run, abstract_mesh(1, 8, 2))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert bytes_per_device(state) < 1.15 * whole / 16


def test_a_mesh_that_does_not_divide() -> None:
    devices = jax.devices() * 6
    with pytest.raises(ValueError, match=r"^a mesh of data=-1, fsdp=4, tensor=1 does not divide 6 devices$"):
        make_mesh(MeshConfig(fsdp=4), devices)
    for sizes, message in (
        ((3, 1, 1), "data=3 x fsdp=1 does not divide the batch of 16"),
        ((1, 1, 3), "tensor=3 does not divide num_heads 8"),
    ):
        with pytest.raises(ValueError, match=message):
            check_mesh(config(), abstract_mesh(*sizes))
    with pytest.raises(ValueError, match=r"does not divide blocks_0/attn/proj/kernel \(1408, 1408\): 1408 by 256"):
        abstract_state(config().replace(model="vit_giant_patch14_224"), abstract_mesh(1, 256, 1))
    assert default_mesh(config().replace(model="vit_giant_patch14_224").model, 256) == MeshConfig(fsdp=128)
    assert default_mesh(config().replace(model="vit_base_patch16_224").model, 16) == MeshConfig(fsdp=16)
    assert default_mesh(config().replace(model="vit_base_patch16_224").model, 64) == MeshConfig(fsdp=32)


# Eight CPU devices need a process of their own.
DEVICES = """
import jax, re, sys, json
import numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from vit_flax.train.sharding_test import config
from vit_flax.chips import CHIPS
from vit_flax.plan.costs import costs
from vit_flax.plan.hlo import Program
from vit_flax.train.compilation import compile_eval, create_state, lower_step
from vit_flax.train.sharding import bytes_per_device, make_mesh, place_batch
rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (3, 16, 16, 16, 3), np.uint8), rng.integers(0, 8, (3, 16), np.int32)
batches = [{"image": image, "label": label} for image, label in zip(images, labels)]
start = None
for sizes in json.loads(sys.argv[1]):
    run = config(**{f"mesh.{k}": v for k, v in sizes.items()}, **{"optimizer.learning_rate": 1e-3})
    count = int(np.prod(list(sizes.values())))
    mesh = make_mesh(run.mesh, jax.devices()[:count])
    state = create_state(run, mesh, start)
    start = jax.tree.map(np.array, state.params) if start is None else start
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
    held = sum(shard.data.nbytes for shard in shards if shard.device.id == 0)
    assert held == bytes_per_device(state)
    step = lower_step(run, mesh).compile()
    losses = []
    for batch in batches:
        state, scalars = step(state, place_batch(batch, mesh))
        losses.append(float(scalars["loss"]))
    sums = compile_eval(run, mesh)(state.params, place_batch(batches[0], mesh))
    collectives = {}
    for exchanged in costs(Program(step.as_text()), CHIPS["v5e"], count).exchanges.values():
        entry = collectives.setdefault(exchanged.kind, {"count": 0, "bytes": 0})
        entry["count"], entry["bytes"] = entry["count"] + exchanged.count, entry["bytes"] + exchanged.bytes
    found = {"losses": losses, "share": held / total, "count": int(sums["count"]), "collectives": collectives}
    print(json.dumps(found))

import functools
from jax.experimental import pallas as pl
from vit_flax.models.row_attention import row_attention
from vit_flax.parity.tolerances import FLOAT32_RELATIVE
from vit_flax.train.sharding import partitioned
pl.pallas_call = functools.partial(pl.pallas_call, interpret=True)
qkv = rng.standard_normal((4, 3, 96), np.float32)
def attend(qkv, bias):
    out = row_attention([qkv], 4, 0.3, None, bias)
    return (out * (1 + np.arange(32))).sum(), out
operands = qkv, np.zeros(96, np.float32)
gradient = jax.grad(attend, (0, 1), has_aux=True)
whole = gradient(*operands)
with partitioned(mesh := make_mesh(config(**{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}).mesh, jax.devices())):
    divided = jax.jit(gradient)
    assert "'tensor'" in str(divided.trace(*operands).jaxpr)
    (found, found_bias), found_out = divided(*operands)
close = functools.partial(np.testing.assert_allclose, rtol=FLOAT32_RELATIVE, atol=FLOAT32_RELATIVE)
(expected, expected_bias), expected_out = whole
close(found, expected)
close(found_out, expected_out)
size = np.abs(expected).max()  # sums over images and tokens cancel, of keys all
for total in (found_bias, expected_bias):
    np.testing.assert_allclose(total, np.sum(expected, (0, 1)), FLOAT32_RELATIVE, FLOAT32_RELATIVE * size)
"""


def test_sharded_training_computes_the_same() -> None:
    meshes = ((1, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (8, 1, 1))
    sizes = [dict(zip(AXES, mesh, strict=True)) for mesh in meshes]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, json.dumps(sizes)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for run in found[1:]:
        # float32: each loss is a mean of 16 numbers near 2, of logits that are sums over 256; three steps apart
        np.testing.assert_allclose(run["losses"], found[0]["losses"], rtol=FLOAT32_LIBRARIES["rtol"])
        assert run["count"] == 16
    assert abs(found[1]["share"] * 8 - 1) < 0.05
    assert abs(found[2]["share"] * 8 - 1) < 0.05
    # by batch alone, what is exchanged is the gradient of each parameter, once, and the loss; that of the class token
    # is the one of its position as well
    params = abstract_state(config(), abstract_mesh(1, 1, 1)).params
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found[0]["collectives"] == {}
    assert found[4]["collectives"] == {"all-reduce": {"count": 1, "bytes": 4 * (numbers - SMALL.embed_dim + 1)}}
    # by fsdp, parameters are gathered once for both passes, and no tokens: these are ten times what the sum leaves out
    tokens = 4 * 16 * (SMALL.num_patches + 1) * SMALL.embed_dim
    gathered = found[1]["collectives"]["all-gather"]["bytes"]
    assert 4 * numbers - tokens / 10 < gathered <= 4 * numbers
    # by tensor, tokens are gathered after the patches' kernel and the positions, which are split, and in no block
    assert found[2]["collectives"]["all-gather"]["bytes"] < 2.1 * tokens
