"""The planned program is the one that runs; the compiler's messages are parsed; bad input is one line."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from vit_flax import gpu_compiler
from vit_flax.cli.main import main
from vit_flax.cli.plan import describe
from vit_flax.config import ViTConfig
from vit_flax.plan import Plan, find_chip, parse_topology, plan
from vit_flax.plan.planning import _out_of_memory
from vit_flax.train.compilation import create_state, lower_step
from vit_flax.train.config import DataConfig, TrainConfig
from vit_flax.train.loop import Run
from vit_flax.train.sharding import make_mesh, place_batch

TINY = ViTConfig(image_size=(8, 8), patch_size=(4, 4), in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=10)


@pytest.mark.parametrize("message", [
    "RESOURCE_EXHAUSTED: E1000: Ran out of memory on HBM, the total memory required for HLO temporaries (206.71G) "
    "exceeds available HBM (15.75G). HLO module: jit_step.",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 206.71G of 15.75G hbm. Exceeded by 190.96G.",
])  # fmt: skip
def test_how_much_does_not_fit(message: str) -> None:
    needed, missing = _out_of_memory(message, 0)
    assert needed == int(206.71 * 2**30)
    assert missing == pytest.approx(190.96 * 2**30)
    assert _out_of_memory("INTERNAL: something else", 0) == (0, 0)


def test_the_planned_step_is_the_one_that_trains(tmp_path) -> None:
    config = TrainConfig(model=TINY, steps=4, data=DataConfig(batch_size=8), out=str(tmp_path))
    run = Run(config, quiet=True)
    run.log.close()
    batch = {"image": np.zeros((8, 8, 8, 1), np.uint8), "label": np.zeros(8, np.int32)}
    planned = lower_step(run.config, make_mesh(run.config.mesh, jax.devices()[:1]))
    trained = run.step_function.lower(create_state(run.config, run.mesh), place_batch(batch, run.mesh))
    assert planned.as_text() == trained.as_text()
    other = lower_step(run.config.replace({"optimizer.weight_decay": 0.3}), run.mesh)
    assert other.as_text() != trained.as_text()


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", "unknown chip 'v9'"),
        ("v5e", "not of the form"),
        ("v5e:0x2", "not of the form"),
        ("h100:2x2x2", "not of the form h100:8 or h100:4x8"),
        ("h100:16", "write h100:2x8"),
        ("h100-8", "write h100:8"),
        ("v3-8", "the compiler .libtpu. no longer has TPU v3"),
        ("v3:2x2", "no longer has TPU v3"),
        ("v4-7", "one of v4-8"),
        ("v5litepod-12", "such as v5e:4x4"),
        ("tpu-8", "no TPU is called 'tpu-8'"),
    ],
)
def test_a_topology_that_does_not_exist(topology: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_chip(topology)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("v5litepod-16", "v5e:4x4"), ("v5litepod-8", "v5e:2x4"), ("v6e-8", "v6e:2x4"), ("v4-8", "v4:2x2x1"),
        ("v5p-8", "v5p:2x2x1"), ("v5p-128", "v5p:4x4x4"), ("v5e:4x4", "v5e:4x4"), ("h100:8", "h100:8"),
        ("h100:1x8", "h100:8"), ("a100:4x8", "a100:4x8"),
    ],
)  # fmt: skip
def test_the_names_that_people_have(name: str, meant: str) -> None:
    assert parse_topology(name).name == meant


@pytest.mark.parametrize(("topology", "library", "extra"), [("v5e:2x2", "libtpu", "tpu"), ("h100:8", "", "gpu-plan")])
def test_without_the_compiler(topology: str, library: str, extra: str, monkeypatch, capsys) -> None:
    if library:
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(gpu_compiler, "show", lambda: False)
    assert main(["plan", "vit_tiny_patch16_224", "--topology", topology]) == 2
    assert f"pip install 'vit-linen[{extra}]'" in capsys.readouterr().err


def test_a_process_without_a_driver_is_quiet_about_the_compiler() -> None:
    code = "from vit_flax.cli.startup import hide_absent_accelerators as hide; hide(); import jax; print(jax.devices())"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[CpuDevice(id=0)]\n", "")


def test_a_plan_for_gpus(capsys) -> None:
    if not gpu_compiler.show():
        pytest.skip("no compiler for GPUs for this platform")
    changes = ("model.depth=1", "model.num_classes=10", "optimizer.name=sgd")
    arguments = ["--topology", "h100:1x2", "--batch", "8", "--no-scan", "--json"]
    sets = [word for change in changes for word in ("--set", change)]
    assert main(["plan", "vit_tiny_patch16_224", *arguments, *sets]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["topology"], made["chips"], made["fits"]) == ("h100:2", 2, True)
    assert 0 < made["mfu"] < 1
    image_gradient = 4 * 2 * 196 * 768 * 192  # which nobody wants; tokens are padded a little
    assert made["step_flops"] == pytest.approx(made["model_flops"] - image_gradient, rel=0.01)
    assert made["device_bytes"] > made["state_bytes"]
    parts = sum(made[f"{name}_seconds"] for name in ("operation", "copy", "exposed"))
    assert made["step_seconds"] == pytest.approx(parts)
    assert sum(line["seconds"] for line in made["lines"]) == pytest.approx(made["operation_seconds"])
    names = {line["name"] for line in made["lines"]}
    assert {"blocks/attn, forward", "blocks/mlp/fc1, backward", "blocks/norm1, backward", "optimizer"} <= names
    assert any("without a GPU" in note for note in made["notes"])
    assert "slowest operations" in describe(Plan(**made))


def test_a_trunk_is_planned_with_a_classifier(capsys, monkeypatch) -> None:
    planned = []
    monkeypatch.setattr("vit_flax.plan.topology_devices", lambda topology: jax.devices()[:1])
    monkeypatch.setattr("vit_flax.plan.plan", lambda config, topology: planned.append(config))
    assert main(["plan", "facebook/sam-vit-base", "--topology", "v5e:1x1"]) == 1  # of no plan
    assert (planned[0].model.num_classes, planned[0].model.global_pool) == (1000, "avg")


def test_a_program_that_cannot_be_read_is_told(capsys, monkeypatch) -> None:
    pytest.importorskip("libtpu", reason="no TPU compiler for this platform")

    def fail(compiled: jax.stages.Compiled) -> str:
        raise jax.errors.JaxRuntimeError("INTERNAL: Async done has no start\nmore")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", fail)
    sets = [word for name in ("depth=1", "embed_dim=128", "num_heads=2") for word in ("--set", f"model.{name}")]
    assert main(["plan", "vit_tiny_patch16_224", "--topology", "v5e:1x1", "--batch", "1", *sets]) == 0
    out = capsys.readouterr().out
    assert "fits" in out
    assert "cannot be read (INTERNAL: Async done has no start)" in out
    assert "step time" not in out


@pytest.mark.slow
def test_the_compiler_itself() -> None:
    pytest.importorskip("libtpu")
    config = TrainConfig(model=TINY, steps=4, precision="bf16", scan=True, data=DataConfig(batch_size=32)).resolve(1000)
    made = plan(config, "v5e:2x2")
    assert made.fits
    assert made.step_flops is not None
    assert made.mfu is not None
    assert made.chips == 4
    image_gradient = 2 * 8 * 4 * 16 * 16  # of the 8 images of a chip, which nobody wants
    logits_again = 2 * 2 * 8 * 2 * 5 * 5 * 8  # of two blocks: the kernel's backward pass computes them again
    assert made.step_flops == made.model_flops - image_gradient + logits_again
    assert 0 < made.mfu <= 1
    assert made.device_bytes is not None
    assert made.device_bytes >= made.state_bytes
