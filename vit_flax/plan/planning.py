"""Compiles a training step for absent chips, and bounds it by the chip's published figures."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from vit_flax.chips import find_chip, parse_topology
from vit_flax.plan.costs import costs
from vit_flax.plan.hlo import Program
from vit_flax.plan.targets import GPU_LIMITS, compiler_options, topology_devices, traced_for
from vit_flax.train.compilation import abstract_state, lower_step
from vit_flax.train.config import MeshConfig, ResolvedConfig
from vit_flax.train.flops import training_flops
from vit_flax.train.sharding import AXES, bytes_per_device, default_mesh, make_mesh

REMATS = ("none", "dots_with_no_batch_dims_saveable", "full")  # from the least recomputation to the most
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A training step on a topology; bytes, FLOPs and seconds are per chip and step."""

    topology: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    precision: str
    remat: str
    scan: bool
    fits: bool
    memory: float  # bytes of the chip's published memory
    missing_bytes: int  # bytes that the step needs beyond the chip's memory; 0 if it fits
    memory_bytes: dict[str, int]  # by kind; empty where compilation ran out of memory
    total_bytes: int  # bytes that the step needs; from the compiler's message where compilation ran out of memory
    state_bytes: int
    model_flops: int  # FLOPs of forward and backward pass, without rematerialisation
    step_flops: int | None  # FLOPs of all products of the compiled program
    bytes_accessed: int | None  # read and written by all operations, in any memory
    device_bytes: int | None  # of them through the device's main memory
    step_seconds: float | None  # lower bound at the published rates: the sum of the next three
    operation_seconds: float | None  # per operation, the slower of compute and memory traffic
    copy_seconds: float | None  # prefetching copies that are not overlapped
    exposed_seconds: float | None  # collectives that are not overlapped
    hidden_seconds: float | None  # collectives that are overlapped: not in the sum
    mfu: float | None  # MFU's upper bound: model_flops over the chip's peak in step_seconds
    lines: list[dict[str, Any]]  # operations by the model's own names, the slowest first
    collectives: list[dict[str, Any]]  # by kind, group and link
    notes: list[str]  # limits of the figures
    compile_seconds: float


def plan(config: ResolvedConfig, topology: str) -> Plan:
    """Compiles the training step of `config` for a topology such as 'v5e:4x4' or 'h100:8'; minutes for large models.

    Raises:
        ValueError: there is no such topology, or the mesh does not fit it or the model.
        ImportError: the compiler is not installed.
    """
    chip, devices = find_chip(topology), topology_devices(topology)
    mesh = make_mesh(config.mesh, devices)
    state = abstract_state(config, mesh)
    with traced_for(topology):
        lowered = lower_step(config, mesh)
    start = time.perf_counter()
    compiled: Any = None
    needed, missing = 0, 0
    try:
        compiled = lowered.compile(compiler_options(topology))
    except jax.errors.JaxRuntimeError as error:
        needed, missing = _out_of_memory(str(error), bytes_per_device(state))
        if not needed:
            raise
    seconds = time.perf_counter() - start
    chips = len(devices)
    found: dict[str, Any] = dict.fromkeys(
        ("step_flops", "bytes_accessed", "device_bytes", "step_seconds", "operation_seconds", "copy_seconds",
         "exposed_seconds", "hidden_seconds", "mfu")
    )  # fmt: skip
    found |= {"lines": [], "collectives": []}
    kinds: dict[str, int] = {}
    notes = list(GPU_LIMITS) if chip.is_gpu else []
    model_flops = training_flops(config) * config.data.batch_size // chips
    if compiled is not None:
        kinds = memory_kinds(compiled)
        needed = sum(kinds.values()) - 2 * kinds["aliased"]  # an aliased output shares its argument's memory
        missing = max(0, needed - int(chip.memory))
    text, unread = _text(compiled)
    if unread:
        notes.append(f"no traffic and no bound: the compiler's program cannot be read ({unread})")
    if text is not None:
        step = costs(Program(text), chip, chips)
        if step.uncounted:
            notes.append(f"products inside {', '.join(sorted(step.uncounted))} are not counted")
        found = {
            "step_flops": step.flops,
            "bytes_accessed": step.bytes,
            "device_bytes": step.device_bytes,
            "step_seconds": step.seconds,
            "operation_seconds": step.operation_seconds,
            "copy_seconds": step.copy_seconds,
            "exposed_seconds": step.exposed_seconds,
            "hidden_seconds": step.exchange_seconds - step.exposed_seconds,
            "mfu": model_flops / chip.flops / step.seconds,
            "lines": [dataclasses.asdict(line) for line in sorted(step.lines.values(), key=lambda line: -line.seconds)],
            "collectives": [dataclasses.asdict(total) for total in step.exchanges.values()],
        }
    return Plan(
        topology=parse_topology(topology).name,
        chips=chips,
        mesh={name: mesh.shape[name] for name in AXES},
        batch_size=config.data.batch_size,
        precision=config.precision,
        remat=config.remat,
        scan=config.scan,
        fits=compiled is not None and not missing,
        memory=chip.memory,
        missing_bytes=missing,
        memory_bytes=kinds,
        total_bytes=needed,
        state_bytes=bytes_per_device(state),
        model_flops=model_flops,
        notes=notes,
        compile_seconds=seconds,
        **found,
    )


def _text(compiled: jax.stages.Compiled | None) -> tuple[str | None, str]:
    """Returns a compiled program's text, or None and why: XLA cannot parse some programs of the v6e's compiler."""
    try:
        return None if compiled is None else compiled.as_text(), ""
    except jax.errors.JaxRuntimeError as error:
        return None, str(error).splitlines()[0][:160]


def memory_kinds(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes that a compiled program needs on a device, by kind."""
    stats: Any = compiled.memory_analysis()
    names = {
        "arguments": "argument",
        "outputs": "output",
        "aliased": "alias",
        "temporaries": "temp",
        "code": "generated_code",
    }
    return {kind: getattr(stats, f"{name}_size_in_bytes") for kind, name in names.items()}


def _out_of_memory(message: str, state_bytes: int) -> tuple[int, int]:
    """Parses the bytes that a step needs and lacks from the compiler's message; (0, 0) for other messages."""
    if "RESOURCE_EXHAUSTED" not in message:
        return 0, 0
    pattern = r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
    if found := re.search(pattern, message):  # what does not fit by itself: temporaries, on top of the state
        needed = float(found[1]) * _UNITS[found[2]] + state_bytes
        return int(needed), int(needed - float(found[3]) * _UNITS[found[4]])
    if found := re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message):
        needed, there = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
        return int(needed), int(needed - there)
    return 0, 0


def search(config: ResolvedConfig, topology: str, report: Callable[[Plan], None]) -> Plan | None:
    """Returns the plan of the largest batch that fits, with the least rematerialisation with which it fits.

    The config's batch is doubled while it fits, or halved until it does. None: no size fits, down to the last half that
    divides over the chips. `report` is called with each plan tried.
    """

    def least(size: int) -> Plan | None:
        for remat in REMATS:
            made = plan(config.replace({"data.batch_size": size, "remat": remat}), topology)
            report(made)
            if made.fits:
                return made
        return None

    size = config.data.batch_size
    best = least(size)
    if best is not None:
        while (larger := least(size := 2 * size)) is not None:
            best = larger
        return best
    shards = len(topology_devices(topology)) // config.mesh.tensor
    while best is None and size % (2 * shards) == 0:
        best = least(size := size // 2)
    return best


def planned(config: ResolvedConfig, topology: str, mesh: MeshConfig | None = None) -> ResolvedConfig:
    """Returns the config with a mesh for the topology: `mesh`, or `default_mesh`.

    Where hosts are joined by a network alone, parameters are split inside a host, and the batch between hosts as well.
    """
    if mesh is None:
        chip, devices = find_chip(topology), len(topology_devices(topology))
        mesh = default_mesh(config.model, min(devices, chip.per_host) if chip.per_host else devices)
    return config.replace(mesh=mesh)
