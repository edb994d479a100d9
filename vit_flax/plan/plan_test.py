"""What is planned is what runs; the compiler's words are read right; bad input is one line."""

import sys

import jax
import numpy as np
import pytest

from vit_flax.cli.main import main
from vit_flax.config import ViTConfig
from vit_flax.plan import find_chip, plan
from vit_flax.plan.hlo import Program
from vit_flax.plan.planning import _out_of_memory
from vit_flax.train.config import DataConfig, TrainConfig
from vit_flax.train.loop import Run
from vit_flax.train.lower import create_state, lower
from vit_flax.train.sharding import make_mesh, place_batch

TINY = ViTConfig(image_size=(8, 8), patch_size=(4, 4), in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=10)

TEXT = """HloModule jit_step, is_scheduled=true

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %sum = f32[8,4]{1,0} all-reduce(%x), channel_id=1, to_apply=%add
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %sum)
}

%condition (p.1: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%slicing (a: f32[12,8,4], i: s32[]) -> f32[8,4] {
  %a = f32[12,8,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %part = f32[1,8,4]{2,1,0} dynamic-slice(%a, %i), dynamic_slice_sizes={1,8,4}
}

ENTRY %main (x: f32[12,8,4]) -> f32[8,4] {
  %x.1 = f32[12,8,4]{2,1,0} parameter(0)
  %zero = s32[] constant(0)
  %first = f32[8,4]{1,0:S(1)} fusion(%x.1, %zero), kind=kLoop, calls=%slicing
  %loop = (s32[], f32[8,4]{1,0}) while(%t.0), condition=%condition, body=%body
  %start = (f32[4,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%y), channel_id=2, dimensions={0}
  ROOT %out = f32[8,4]{1,0} all-gather-done(%start)
}
"""


def test_loops_count_as_often_as_they_run() -> None:
    program = Program(TEXT)
    assert program.collectives() == {
        "all-gather": {"count": 1, "bytes": 128},
        "all-reduce": {"count": 12, "bytes": 12 * 128},
    }


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
    planned = lower(run.config, make_mesh(run.config.mesh, jax.devices()[:1]))
    trained = run.step_function.lower(create_state(run.config, run.mesh), place_batch(batch, run.mesh))
    assert planned.as_text() == trained.as_text()
    other = lower(run.config.replace({"optimizer.weight_decay": 0.3}), run.mesh)
    assert other.as_text() != trained.as_text()


@pytest.mark.parametrize(
    ("topology", "message"),
    [("v9:2x2", "unknown chip 'v9'"), ("v5e", "not of the form"), ("v5e:0x2", "not of the form")],
)
def test_a_topology_that_does_not_exist(topology: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_chip(topology)


def test_without_the_compiler(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert main(["plan", "vit_tiny_patch16_224", "--topology", "v5e:2x2"]) == 2
    assert capsys.readouterr().err == ("vit-flax plan: planning needs the TPU compiler: pip install 'vit-linen[tpu]'\n")


@pytest.mark.slow
def test_the_compiler_itself() -> None:
    pytest.importorskip("libtpu")
    config = TrainConfig(model=TINY, steps=4, precision="bf16", scan=True, data=DataConfig(batch_size=32)).resolve(1000)
    made = plan(config, "v5e:2x2")
    assert made.fits
    assert made.step_flops is not None
    assert made.mfu is not None
    assert made.chips == 4
    assert made.step_flops >= made.model_flops > 0
    assert 0 < made.mfu <= 1
    assert made.moved_bytes is not None
    assert made.moved_bytes >= 2 * made.state_bytes
