"""On a TPU and on a GPU our blocks move no more bytes than stock linen's, by those chips' own compilers."""

import pytest

from benchmarks.accelerators import CHIPS, compile_case, table
from vit_flax import gpu_compiler
from vit_flax.chips import find_chip
from vit_flax.plan.costs import Costs, costs
from vit_flax.plan.hlo import Program


def _costs(chip: str, contestant: str) -> Costs:
    if chip == "h100" and not gpu_compiler.show():
        pytest.skip("no compiler for GPUs for this platform")
    if chip != "h100":
        pytest.importorskip("libtpu", reason="no TPU compiler for this platform")
    compiled = compile_case("S", 2, 32, "training", CHIPS[chip], contestant)
    return costs(Program(compiled.as_text()), find_chip(CHIPS[chip]))


# the TPU's compiler takes a minute and a half of a core for two such blocks of linen's, the GPU's seconds
@pytest.mark.parametrize("chip", ["h100", pytest.param("v5e", marks=pytest.mark.slow)])
def test_two_blocks_move_no_more_bytes_than_linens(chip: str) -> None:
    ours, linen = _costs(chip, "ours"), _costs(chip, "linen")
    assert ours.flops == pytest.approx(linen.flops, rel=0.05), "another model"
    assert ours.bytes <= linen.bytes


def test_a_forward_pass_reads_its_weights_and_images_and_keeps_the_rest_in_a_tpus_fast_memory() -> None:
    pytest.importorskip("libtpu", reason="no TPU compiler for this platform")
    compiled = compile_case("S", 2, 64, "forward", CHIPS["v6e"], "ours")
    read = costs(Program(compiled.as_text()), find_chip(CHIPS["v6e"])).device_bytes
    params, images = compiled.memory_analysis().argument_size_in_bytes, 64 * 224 * 224 * 3
    assert read < 1.2 * (params + images)  # five times as much where all images are computed at once


def test_cudnns_attention_compiles_for_a_gpu_and_stores_no_logits() -> None:
    if not gpu_compiler.show():
        pytest.skip("no compiler for GPUs for this platform")
    text = compile_case("S", 1, 2, "training", CHIPS["h100"], "ours, cudnn").as_text()
    assert text.count('custom_call_target="__cudnn$fmha') == 2  # forward and backward, of 197 tokens
    assert "2,6,198,198]" not in text
    assert "2,6,200,200]" not in text


def test_the_table() -> None:
    row = {"model": "S", "depth": None, "batch": 64, "mode": "training", "chip": "v5e", "accessed": 3 * 10**9,
           "bytes": 2 * 10**9, "device_bytes": 10**9, "temporary_bytes": 10**8, "flops": 10**12, "uncounted": [],
           "bound_seconds": 0.002, "compile_seconds": 9.5}  # fmt: skip
    rows = [{**row, "contestant": "linen", "device_bytes": 2 * 10**9}, {**row, "contestant": "ours"}]
    rows.append({**{name: row[name] for name in ("model", "depth", "batch", "mode", "chip")},
                 "contestant": "ours, cudnn", "error": "it needs a GPU"})  # fmt: skip
    text = table({"rows": rows, "versions": {"libtpu": "0", "jax": "0"}})
    assert "| ours | 3.0 | 2.00 | 1.00 | 0.10 | 1.00 | 2.00 | 0.50 | 1.00 | 9.5 |" in text
    assert "| ours, cudnn | it needs a GPU |" in text
