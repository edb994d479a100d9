"""Roofline costs of one run of a compiled program: compute, memory traffic, collectives, operation by operation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from vit_flax.chips import Chip
from vit_flax.plan.collectives import Exchange, exchange
from vit_flax.plan.hlo import Computation, Operation, Program
from vit_flax.plan.labels import label_of
from vit_flax.plan.products import count, uncounted
from vit_flax.plan.traffic import is_collective, moved


@dataclasses.dataclass
class Line:
    """Operations of one name, summed over all runs of a step; seconds at the chip's published rates."""

    name: str
    flops: int = 0
    bytes: int = 0  # read and written, in any memory
    device_bytes: int = 0  # of them through the device's main memory
    compute_seconds: float = 0.0
    move_seconds: float = 0.0
    seconds: float = 0.0  # per operation, the slower of compute and traffic
    runs: int = 0


@dataclasses.dataclass
class Total:
    """Collectives of one kind, group and link."""

    kind: str
    group: int
    link: str
    count: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class Costs:
    """Costs of one step on one device; `seconds` bounds it by operations, exposed copies and exposed collectives."""

    lines: dict[str, Line] = dataclasses.field(default_factory=dict)
    exchanges: dict[tuple[str, int, str], Total] = dataclasses.field(default_factory=dict)
    copy_seconds: float = 0.0  # prefetching copies that concurrent operations do not hide
    exchange_seconds: float = 0.0  # all collectives, without overlap
    exposed_seconds: float = 0.0  # of them those not overlapped
    uncounted: set[str] = dataclasses.field(default_factory=set)  # kernels whose FLOPs are not known

    @property
    def flops(self) -> int:
        """FLOPs of all products."""
        return sum(line.flops for line in self.lines.values())

    @property
    def bytes(self) -> int:
        """Bytes that all operations read and write."""
        return sum(line.bytes for line in self.lines.values())

    @property
    def device_bytes(self) -> int:
        """Bytes through the device's main memory."""
        return sum(line.device_bytes for line in self.lines.values())

    @property
    def operation_seconds(self) -> float:
        """The sum over operations of the slower of compute and memory traffic."""
        return sum(line.seconds for line in self.lines.values())

    @property
    def seconds(self) -> float:
        """Lower bound of a step at the published rates."""
        return self.operation_seconds + self.copy_seconds + self.exposed_seconds


@dataclasses.dataclass
class _Clock:
    """Asynchronous work that overlaps operations: copies while the memory is idle, collectives on their links."""

    copies: dict[str, float] = dataclasses.field(default_factory=dict)  # remaining seconds
    exchanges: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0  # of operations
    moving: float = 0.0  # of them the memory is busy

    def run(self, seconds: float, moving: float) -> None:
        self.seconds += seconds
        self.moving += moving
        _drain(self.copies, seconds - moving)
        _drain(self.exchanges, seconds)

    def wait(self, name: str) -> tuple[float, float]:
        """Returns the exposed seconds of a copy and of a collective at their end."""
        copy, link = self.copies.pop(name, 0.0), self.exchanges.pop(name, 0.0)
        _drain(self.copies, link)
        _drain(self.exchanges, copy)
        return copy, link


def _drain(queue: dict[str, float], seconds: float) -> None:
    for name in queue:
        used = min(queue[name], seconds)
        queue[name] -= used
        seconds -= used


def costs(program: Program, chip: Chip, devices: int = 1) -> Costs:
    """Returns the costs of a program on each of `devices` such chips."""
    found = Costs()
    _run(program, program.entry, chip, devices, 1, found)
    return found


def _run(program: Program, name: str, chip: Chip, devices: int, times: int, found: Costs) -> _Clock:
    """Adds a computation that runs `times` times to `found`, and returns the clock of one run."""
    computation = program.computations.get(name, {})
    clock = _Clock()
    parts = _spread(program, computation)
    for operation in computation.values():
        for inner, trips in program.inner(operation):
            once = _run(program, inner, chip, devices, times * trips, found)
            clock.run(once.seconds * trips, once.moving * trips)
        if operation.opcode.endswith("-done") and operation.operands:
            _wait(clock, operation.operands[0], times, found)
            continue
        flops = count(program, computation, operation) if operation.opcode != "async-start" else Counter()
        everywhere, through = moved(program, computation, operation)
        if kernel := uncounted(operation):
            found.uncounted.add(kernel)
        ending = []
        for key, inner, where, kind in _collectives(program, computation, operation):
            first, end = parts.get(key, (operation.name, operation.name))
            if first == operation.name:
                made = exchange(where, inner, chip, devices, kind)
                _add(found, made, times)
                clock.exchanges[key] = made.seconds
                if where is not computation:
                    extra = moved(program, where, inner)
                    everywhere, through = everywhere + extra[0], through + extra[1]
            if end == operation.name and not inner.opcode.endswith("-start"):
                ending.append(key)
        computing, moving = chip.compute_seconds(flops), through / chip.bandwidth
        is_copy = operation.opcode in ("copy-start", "slice-start", "dynamic-slice-start")
        if flops or everywhere:
            line = found.lines.setdefault(text := label_of(program, computation, operation), Line(text))
            line.runs += times
            line.flops += sum(flops.values()) * times
            line.bytes += everywhere * times
            line.device_bytes += through * times
            line.compute_seconds += computing * times
            line.move_seconds += moving * times
            line.seconds += 0.0 if is_copy else max(computing, moving) * times
        if is_copy:
            clock.copies[operation.name] = moving
        else:
            clock.run(max(computing, moving), moving)
        for key in ending:
            _wait(clock, key, times, found)
    return clock


def _wait(clock: _Clock, name: str, times: int, found: Costs) -> None:
    copy, link = clock.wait(name)
    found.copy_seconds += copy * times
    found.exposed_seconds += link * times


def _add(found: Costs, made: Exchange, times: int) -> None:
    total = found.exchanges.setdefault((made.kind, made.group, made.link), Total(made.kind, made.group, made.link))
    total.count += times
    total.bytes += made.bytes * times
    total.seconds += made.seconds * times
    found.exchange_seconds += made.seconds * times


def _collectives(
    program: Program, computation: Computation, operation: Operation
) -> Iterator[tuple[str, Operation, Computation, str]]:
    """Yields the collectives of an operation: itself, or those in its fusion, which TPUs spread over several fusions.

    Each comes as the key that its parts share, the operation, its computation and its kind.
    """
    if is_collective(operation):
        yield operation.name, operation, computation, operation.opcode.removesuffix("-start")
    elif operation.opcode == "fusion":
        name = operation.attribute("calls")
        called = program.computations.get(name, {})
        for inner in called.values():
            for _, deeper, where, kind in _collectives(program, called, inner):
                channel = deeper.attributes.partition("channel_id=")[2].partition(",")[0]
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
                yield channel or operation.name, deeper, where, kind


def _spread(program: Program, computation: Computation) -> dict[str, tuple[str, str]]:
    """Returns the first and the last fusion that hold a part of each collective, by its channel."""
    parts: dict[str, tuple[str, str]] = {}
    for operation in computation.values():
        if operation.opcode == "fusion":
            for key, _, _, _ in _collectives(program, computation, operation):
                parts[key] = (parts.get(key, (operation.name,))[0], operation.name)
    return parts
