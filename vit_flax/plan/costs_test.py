"""FLOPs, bytes and collectives against counts by hand, of HLO texts and of small compiled programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_flax import gpu_compiler
from vit_flax.chips import CHIPS, find_chip
from vit_flax.plan.collectives import groups_of
from vit_flax.plan.costs import Costs, costs
from vit_flax.plan.hlo import Program, arrays
from vit_flax.plan.labels import label
from vit_flax.plan.targets import compiler_options, topology_devices

LOOP = """HloModule jit_step, is_scheduled=true

%product (a: f32[8,16], stack: f32[12,16,4], n: s32[], kept: f32[12,8,4]) -> (f32[8,4], f32[12,8,4]) {
  %a = f32[8,16]{1,0} parameter(0)
  %stack = f32[12,16,4]{2,1,0} parameter(1)
  %n = s32[] parameter(2)
  %kept = f32[12,8,4]{2,1,0} parameter(3)
  %part = f32[1,16,4]{2,1,0} dynamic-slice(%stack, %n), dynamic_slice_sizes={1,16,4}
  %w = f32[16,4]{1,0} bitcast(%part)
  %dot = f32[8,4]{1,0} dot(%a, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
operand_precision={highest,highest}, metadata={op_name="jit(step)/jvp(Net)/blocks_3/attn/qkv/dot_general"}
  %row = f32[1,8,4]{2,1,0} bitcast(%dot)
  %new = f32[12,8,4]{2,1,0} dynamic-update-slice(%kept, %row, %n)
  ROOT %both = (f32[8,4]{1,0}, f32[12,8,4]{2,1,0}) tuple(%dot, %new)
}

%body (p: (s32[], f32[8,16], f32[12,16,4], f32[12,8,4])) -> (s32[], f32[8,16], f32[12,16,4], f32[12,8,4]) {
  %p = (s32[], f32[8,16]{1,0}, f32[12,16,4]{2,1,0}, f32[12,8,4]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %all = f32[12,16,4]{2,1,0} get-tuple-element(%p), index=2
  %old = f32[12,8,4]{2,1,0} get-tuple-element(%p), index=3
  %fused = (f32[8,4]{1,0}, f32[12,8,4]{2,1,0}) fusion(%x, %all, %i, %old), kind=kLoop, calls=%product
  %y = f32[8,4]{1,0} get-tuple-element(%fused), index=0
  %sum = f32[8,4]{1,0} all-reduce(%y), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[8,16]{1,0}, f32[12,16,4]{2,1,0}, f32[12,8,4]{2,1,0}) tuple(%i, %x, %all, %old)
}

%compared (q: s32[]) -> pred[] {
  %q = s32[] parameter(0)
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%q, %limit), direction=LT
}

%condition (p.1: (s32[], f32[8,16], f32[12,16,4], f32[12,8,4])) -> pred[] {
  %p.1 = (s32[], f32[8,16]{1,0}, f32[12,16,4]{2,1,0}, f32[12,8,4]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %ends = pred[] fusion(%i.1), kind=kLoop, calls=%compared
}

ENTRY %main (t.0: (s32[], f32[8,16], f32[12,16,4], f32[12,8,4])) -> f32[8,4] {
  %t.0 = (s32[], f32[8,16]{1,0}, f32[12,16,4]{2,1,0}, f32[12,8,4]{2,1,0}) parameter(0)
  %loop = (s32[], f32[8,16]{1,0}, f32[12,16,4]{2,1,0}, f32[12,8,4]{2,1,0}) while(%t.0), condition=%condition, \
body=%body
  %mine = f32[4,4]{1,0} broadcast(%zero), dimensions={}
  %start = (f32[4,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%mine), channel_id=2, replica_groups=[2,2]<=[4], \
dimensions={0}
  %big = f32[1000,1000]{1,0} broadcast(%zero), dimensions={}
  ROOT %out = f32[8,4]{1,0} all-gather-done(%start)
}
"""


def test_a_loop_is_counted_as_often_as_it_runs_and_a_slice_alone() -> None:
    found = costs(Program(LOOP), CHIPS["h100"], 4)
    qkv = found.lines["blocks/attn/qkv, forward"]
    assert qkv.flops == 12 * 2 * 8 * 4 * 16
    # reads x, a sixteenth of the stack, the counter; writes the product and one row of what is kept
    assert qkv.device_bytes == 12 * 4 * (8 * 16 + 16 * 4 + 1 + 8 * 4 + 8 * 4)
    assert qkv.compute_seconds == pytest.approx(qkv.flops / 67e12)  # 'highest' in float32: no tensor cores
    assert qkv.seconds == pytest.approx(qkv.device_bytes / 3350e9)


def test_a_loop_that_the_compiler_unrolled_takes_larger_steps() -> None:
    text = LOOP.replace("  ROOT %t = ", "  %two = s32[] constant(2)\n  %next = s32[] add(%i, %two)\n  ROOT %t = ")
    stepping = text.replace("tuple(%i, %x, %all, %old)", "tuple(%next, %x, %all, %old)")
    assert costs(Program(stepping), CHIPS["h100"]).flops == 6 * 2 * 8 * 4 * 16
    told = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert costs(Program(told), CHIPS["h100"]).flops == 5 * 2 * 8 * 4 * 16


def test_a_collective_costs_time_unless_something_runs_beside_it() -> None:
    found = costs(Program(LOOP), CHIPS["h100"], 4)
    reduced, gathered = found.exchanges["all-reduce", 2, "NVLink"], found.exchanges["all-gather", 2, "NVLink"]
    assert (reduced.count, reduced.bytes) == (12, 12 * 128)
    assert reduced.seconds == pytest.approx(12 * 128 / 450e9)  # 2 x half of it, in and out
    assert (gathered.count, gathered.bytes) == (1, 128)
    assert found.exchange_seconds == pytest.approx(reduced.seconds + gathered.seconds)
    # of an all-reduce that blocks, what its own bytes in memory do not take; the all-gather hides behind the broadcast
    assert found.exposed_seconds == pytest.approx(12 * (128 / 450e9 - 256 / 3350e9))


HOSTS = """ENTRY %main (x: bf16[4,1024]) -> bf16[64,1024] {
  %x = bf16[4,1024]{1,0} parameter(0)
  ROOT %all = bf16[64,1024]{1,0} all-gather(%x), channel_id=1, replica_groups=[1,16]<=[16], dimensions={0}
}
"""


def test_hosts_exchange_over_their_network() -> None:
    found = costs(Program(HOSTS), CHIPS["h100"], 16)
    (total,) = found.exchanges.values()
    assert total.link == "NVLink and between hosts"
    size = 64 * 1024 * 2
    # eight adapters of 50 GB/s bring a host the other's half, while NVLink brings each GPU 15 of 16 parts
    assert total.seconds == pytest.approx(max(size / 2 / 8 / 50e9, size * 15 / 16 / 450e9))
    alone = costs(Program(HOSTS.replace("[1,16]<=[16]", "[8,2]<=[2,8]T(1,0)")), CHIPS["h100"], 16)
    assert next(iter(alone.exchanges.values())).seconds == pytest.approx(size / 2 / 50e9)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
    ],
)
def test_groups_in_each_form(text: str, groups: list[list[int]]) -> None:
    assert groups_of(f"channel_id=1, {text}, dimensions={{0}}", 4) == groups


def test_arrays_as_they_lie() -> None:
    fast, slow, counter = arrays("(bf16[197,64]{1,0:T(8,128)(2,1)S(1)}, f32[5,197,64]{1,2,0:T(8,128)}, s32[])")
    assert (fast.bytes, fast.on_device) == (200 * 128 * 2, False)
    assert (slow.bytes, slow.on_device) == (5 * 64 * 256 * 4, True)
    assert counter.bytes == 4


CALLS = """ENTRY %main (x: bf16[64,32]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[32,16]{1,0} parameter(1)
  %gemm = (bf16[64,16]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %images = bf16[2,8,8,3]{3,2,1,0} parameter(2)
  %kernel = bf16[4,4,3,32]{3,2,1,0} parameter(3)
  %patches = (bf16[2,2,2,32]{3,2,1,0}, u8[99]{0}) custom-call(%images, %kernel), window={size=4x4 stride=4x4}, \
dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward"
  %mystery = bf16[64,16]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  %q = bf16[6,197,64]{2,1,0} parameter(4)
  %blocks = s8[6,2,2]{2,1,0} parameter(5)
  %heads = bf16[6,197,64]{2,1,0} custom-call(%blocks, %blocks, %q, %q, %q), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 197}"
}}, metadata={op_name="jit(f)/attn/splash_mha_fwd_residuals"}
  ROOT %out = bf16[64,16]{1,0} get-tuple-element(%gemm), index=0
}
"""


def test_products_of_libraries_and_kernels() -> None:
    found = costs(Program(CALLS), CHIPS["h100"])
    attention = 2 * 2 * 6 * 197 * 197 * 64
    assert found.flops == 2 * 64 * 16 * 32 + 2 * (2 * 2 * 2 * 32) * (4 * 4 * 3) + attention
    assert found.uncounted == {"tpu_custom_call"}  # the one whose name tells nothing
    workspaces = 4194304 + 99
    assert found.device_bytes < workspaces  # which nobody reads


def test_batched_products_as_tpus_write_them() -> None:
    text = """ENTRY %main (a: bf16[32,6,197,64]) -> f32[32,6,197,197] {
  %a = bf16[32,6,197,64]{3,2,1,0} parameter(0)
  %b = bf16[32,6,197,64]{3,2,1,0} parameter(1)
  ROOT %logits = f32[32,6,197,197]{3,2,1,0} convolution(%a, %b), \
window={size=32x6 stride=31x5 lhs_dilate=32x6}, dim_labels=01bf_01oi->01bf
}
"""
    assert costs(Program(text), CHIPS["v5e"]).flops == 2 * 32 * 6 * 197 * 197 * 64


@pytest.mark.parametrize(
    ("op_name", "name"),
    [
        ("jit(step)/jvp(Net)/Net.encode/blocks_11/attn/qkv/dot_general", "blocks/attn/qkv, forward"),
        ("jit(step)/transpose(jvp(Net))/Net._run_blocks/while/body/blocks_0/mlp/fc1/mul", "blocks/mlp/fc1, backward"),
        ("jit(step)/transpose(jvp(Net))/Net._run_blocks/jvp(blocks_3)/mlp/fc2/dot_general", "blocks/mlp/fc2, backward"),
        ("jit(step)/transpose(jvp(Net))/(Net.classify/Net._head/head/dot_general)", "head, backward"),
        ("jit(step)/transpose(jvp(Net))/checkpoint/rematted_computation/block_2/norm1/sub", "blocks/norm1, recomputed"),
        (
            "jit(step)/transpose(jvp(Net))/while/body/blocks_0/mlp/fc2/blocks_0/mlp/fc2/checkpoint/fc2._apply/dot_general",
            "blocks/mlp/fc2, backward",
        ),
        ("jit(step)/jvp(Net)/Net._run_blocks/jvp()/while/body/closed_call/blocks_0/attn/mul", "blocks/attn, forward"),
        ("jit(step)/jvp(Net)/Net._run_blocks/jvp()/stack", "blocks, forward"),
        ("jit(step)/jvp(jit(log_softmax))/sub", "loss, forward"),
        ("jit(step)/optimizer/mul", "optimizer"),
        ("state.params['blocks_0']['attn']['qkv']['kernel']", "parameters, state and batch"),
    ],
)  # fmt: skip
def test_names_are_the_models(op_name: str, name: str) -> None:
    assert label(op_name) == name


def _compiled(function: Any, *shapes: Any, topology: str, split: str | None = None) -> Costs:
    pytest.importorskip("libtpu", reason="no TPU compiler for this platform") if topology.startswith("v") else None
    if topology.startswith("h") and not gpu_compiler.show():
        pytest.skip("no compiler for GPUs for this platform")
    devices = topology_devices(topology)
    mesh = Mesh(np.array(devices), ("x",))
    given, whole = NamedSharding(mesh, PartitionSpec(split)), NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(function, in_shardings=given, out_shardings=whole).lower(*shapes)
    text = compiled.compile(compiler_options(topology)).as_text() or ""
    return costs(Program(text), find_chip(topology), len(devices))


def _bf16(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


@pytest.mark.parametrize("topology", ["v5e:1x1", "h100:1"])
def test_what_the_compilers_make_of_products_and_chains(topology: str) -> None:
    chip = find_chip(topology)
    product = _compiled(lambda x, w: x @ w, _bf16(1024, 512), _bf16(512, 2048), topology=topology)
    assert product.flops == 2 * 1024 * 512 * 2048
    assert product.device_bytes == 2 * (1024 * 512 + 512 * 2048 + 1024 * 2048)
    assert product.seconds >= max(product.flops / chip.flops, product.device_bytes / chip.bandwidth) * 0.999

    def scanned(x: Any, stack: Any) -> Any:
        return jax.lax.scan(lambda x, w: (x @ w, None), x, stack)[0]

    loop = _compiled(scanned, _bf16(1024, 512), _bf16(5, 512, 512), topology=topology)
    assert loop.flops == 5 * 2 * 1024 * 512 * 512
    tokens, kernel, counters = 2 * 1024 * 512, 2 * 512 * 512, 1024
    # a TPU keeps the tokens on the chip: in and out once, and every kernel once. A GPU copies each kernel out of the
    # stack, multiplies and copies what the loop carries, once before it as well
    least = 2 * tokens + 5 * kernel if chip.link_name == "ICI" else 5 * (4 * tokens + 3 * kernel) + 2 * tokens
    assert least <= loop.device_bytes <= least + counters

    shape = jax.ShapeDtypeStruct((16384, 8192), jnp.float32)
    chain = _compiled(lambda x: jnp.tanh(jnp.exp(x) * 2 + 1), shape, topology=topology)
    assert (chain.flops, chain.device_bytes) == (0, 2 * 4 * 16384 * 8192)  # fused: in once, out once
    assert chain.seconds == pytest.approx(2 * 4 * 16384 * 8192 / chip.bandwidth)


UPDATES = """%both (kept: f32[8,16], one: f32[1,16], two: f32[2,16]) -> f32[8,16] {
  %kept = f32[8,16]{1,0} parameter(0)
  %one = f32[1,16]{1,0} parameter(1)
  %two = f32[2,16]{1,0} parameter(2)
  %first = f32[8,16]{1,0} dynamic-update-slice(%kept, %one, %zero, %zero)
  ROOT %second = f32[8,16]{1,0} dynamic-update-slice(%first, %two, %zero, %zero)
}

%fresh (one.1: f32[1,16]) -> f32[8,16] {
  %buffer = f32[8,16]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %one.1 = f32[1,16]{1,0} parameter(0)
  ROOT %written = f32[8,16]{1,0} dynamic-update-slice(%buffer, %one.1, %zero, %zero)
}

ENTRY %main (kept.0: f32[8,16], one.0: f32[1,16], two.0: f32[2,16]) -> (f32[8,16], f32[8,16]) {
  %kept.0 = f32[8,16]{1,0} parameter(0)
  %one.0 = f32[1,16]{1,0} parameter(1)
  %two.0 = f32[2,16]{1,0} parameter(2)
  %new = f32[8,16]{1,0} fusion(%kept.0, %one.0, %two.0), kind=kLoop, calls=%both
  %begun = f32[8,16]{1,0} fusion(%one.0), kind=kLoop, calls=%fresh
  ROOT %t = (f32[8,16]{1,0}, f32[8,16]{1,0}) tuple(%new, %begun)
}
"""


def test_updates_write_their_own_elements_alone() -> None:
    rows = 1 + 2 + 1  # each read and written, neither what is kept nor the buffer that is begun
    assert costs(Program(UPDATES), CHIPS["h100"]).device_bytes == 2 * rows * 16 * 4


@pytest.mark.parametrize("topology", ["v5e:1x1", "h100:1"])
def test_what_the_compilers_make_of_a_stack(topology: str) -> None:
    parts = [jax.ShapeDtypeStruct((2048, 4096), jnp.float32)] * 6
    found = _compiled(lambda *parts: jnp.stack(parts).astype(jnp.bfloat16), *parts, topology=topology)
    assert found.device_bytes == 6 * 2048 * 4096 * (4 + 2)


@pytest.mark.parametrize(("topology", "devices"), [("v5e:2x2", 4), ("h100:8", 8)])
def test_what_the_compilers_make_of_an_all_gather(topology: str, devices: int) -> None:
    shape = jax.ShapeDtypeStruct((8192, 1024), jnp.float32)
    found = _compiled(lambda x: x + 1, shape, topology=topology, split="x")
    (total,) = found.exchanges.values()
    size = 4 * 8192 * 1024
    assert (total.kind, total.group, total.count, total.bytes) == ("all-gather", devices, 1, size)
    assert total.seconds == pytest.approx(size * (devices - 1) / devices / find_chip(topology).link)
