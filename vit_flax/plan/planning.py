"""Compiles a training step for a TPU topology and puts what the compiler says beside the chip's published figures."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from vit_flax.plan.chips import find_chip, topology_devices
from vit_flax.plan.hlo import Program
from vit_flax.train.config import MeshConfig, TrainConfig
from vit_flax.train.flops import count_flops, training_flops
from vit_flax.train.lower import abstract_state, lower
from vit_flax.train.sharding import AXES, bytes_per_device, default_mesh, make_mesh
from vit_flax.train.step import batch_shapes, train_step

REMATS = ("none", "dots_with_no_batch_dims_saveable", "full")  # from the least recomputation to the most
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A training step on a topology; bytes, operations and seconds are of one chip and one step."""

    topology: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    precision: str
    remat: str
    scan: bool
    fits: bool
    memory: float  # of the chip, as published
    missing_bytes: int  # how much more memory the step needs than there is; 0 if it fits
    memory_bytes: dict[str, int]  # by kind; empty when the compiler gave up before
    total_bytes: int  # what the step needs; by the compiler's message when it gave up
    state_bytes: int
    model_flops: int  # of forward and backward pass, nothing recomputed
    step_flops: int | None  # of all products of the step
    moved_bytes: int | None  # between memory and chip at the least: state and batch read once, state written once
    step_seconds: float | None  # no step is faster: computing, or moving the state, at the published rates
    bound: str | None  # which of them that is
    mfu: float | None  # model_flops over what the chip could do in step_seconds: no step has more
    collectives: dict[str, dict[str, int]]
    compile_seconds: float


def plan(config: TrainConfig, topology: str) -> Plan:
    """Compiles the training step of `config` for a topology such as 'v5e:4x4'; takes minutes for large models.

    Raises:
        ValueError: there is no such topology, or the mesh does not fit it or the model.
        ImportError: libtpu is not installed.
    """
    chip, devices = find_chip(topology), topology_devices(topology)
    mesh = make_mesh(config.mesh, devices)
    state = abstract_state(config, mesh)
    lowered = lower(config, mesh)
    start = time.perf_counter()
    compiled: Any = None
    needed, missing = 0, 0
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, missing = _out_of_memory(str(error), bytes_per_device(state))
        if not needed:
            raise
    seconds = time.perf_counter() - start
    chips = len(devices)
    found: dict[str, Any] = {
        "step_flops": None,
        "moved_bytes": None,
        "step_seconds": None,
        "bound": None,
        "mfu": None,
    }
    kinds: dict[str, int] = {}
    collectives = {}
    model_flops = training_flops(config) * config.data.batch_size // chips
    if compiled is not None:
        stats: Any = compiled.memory_analysis()
        names = {
            "arguments": "argument",
            "outputs": "output",
            "aliased": "alias",
            "temporaries": "temp",
            "code": "generated_code",
        }
        kinds = {kind: getattr(stats, f"{name}_size_in_bytes") for kind, name in names.items()}
        needed = sum(kinds.values()) - 2 * kinds["aliased"]  # an aliased output lies in its argument's memory
        missing = max(0, needed - int(chip.memory))
        traced = jax.make_jaxpr(lambda s, b: train_step(s, b, config))(state, batch_shapes(config))
        # The compiler's own "bytes accessed" is no bound: it counts a loop's body once, and what stays on the chip.
        flops, moved = count_flops(traced.jaxpr) // chips, kinds["arguments"] + kinds["outputs"]
        computing, moving = flops / chip.flops, moved / chip.bandwidth
        found = {
            "step_flops": flops,
            "moved_bytes": moved,
            "step_seconds": max(computing, moving),
            "bound": "compute" if computing > moving else "memory",
            "mfu": model_flops / chip.flops / max(computing, moving),
        }
        collectives = Program(compiled.as_text()).collectives()
    return Plan(
        topology=topology,
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
        collectives=collectives,
        compile_seconds=seconds,
        **found,
    )


def _out_of_memory(message: str, state_bytes: int) -> tuple[int, int]:
    """Returns the bytes that a step needs and lacks, by the compiler's message; (0, 0) if it says something else."""
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


def search(config: TrainConfig, topology: str, report: Callable[[Plan], None]) -> Plan | None:
    """Returns the plan of the largest batch that fits, with the least recomputation that it fits with.

    From the config's batch on, sizes are doubled while they fit, or halved until one does. None: not one image a chip
    fits. `report` is called with each plan tried.
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


def planned(config: TrainConfig, topology: str, mesh: MeshConfig | None = None) -> TrainConfig:
    """Returns the config on a mesh for the topology: the given one, or parameters split by as many chips as divide."""
    return config.replace(mesh=mesh or default_mesh(config.model, len(topology_devices(topology))))
