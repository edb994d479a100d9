"""Collectives of a compiled program: bytes, device groups, links, and time at the link's published rate."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from vit_flax.chips import Chip
from vit_flax.plan.hlo import Array, Computation, Operation


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One execution of a collective, on one device."""

    kind: str
    bytes: int  # the larger of operands and result
    group: int  # devices of a replica group
    hosts: int  # hosts that a group spans, where the network is slower than the link
    link: str
    seconds: float  # lower bound at the link's published rate


def exchange(computation: Computation, operation: Operation, chip: Chip, devices: int, kind: str) -> Exchange:
    """Returns the exchange of a collective on `devices` devices, which are numbered host by host.

    `kind` is its opcode, or a TPU's implementation: a fused all-reduce-scatter is a reduce-scatter.
    """
    given: Sequence[Array] = [array for name in operation.operands if name in computation
                              for array in computation[name].arrays]  # fmt: skip
    taken, result = _logical(given), _logical(operation.arrays)
    if operation.opcode.endswith("-start") and result > taken:
        result -= taken if len(operation.arrays) > len(given) else 0  # the result tuple holds the operands as well
    size = max(taken, result)
    groups = groups_of(operation.attributes, devices)
    group = max((len(members) for members in groups), default=1)
    per_host = chip.per_host or devices
    spans = max((len({member // per_host for member in members}) for members in groups), default=1)
    share = _share(kind, group)
    seconds, link = size * share / chip.link, chip.link_name
    if spans > 1:
        # each host receives through the network adapters of all its devices in the group at once
        local = max(1, group // spans)
        seconds = max(seconds, size * _share(kind, spans) / local / chip.network)
        link += " and between hosts"
    return Exchange(kind, size, group, spans, link, seconds)


def _logical(found: Sequence[Array]) -> int:
    return sum(array.bytes for array in found)


def _share(kind: str, group: int) -> float:
    """Returns the bytes that every device receives at least, as a fraction of the collective's."""
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (group - 1) / group


def groups_of(attributes: str, devices: int) -> list[list[int]]:
    """Parses replica groups, in any of XLA's text forms."""
    if found := re.search(r"source_target_pairs=\{((?:\{[\d,]*\},?)*)\}", attributes):
        return [_numbers(pair) for pair in re.findall(r"\{([\d,]*)\}", found[1])]
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", attributes):
        return [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", found[1])]
    if found := re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _iota(found[1])
    pattern = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}"
    if found := re.search(pattern, attributes):
        return _by_axes(found[1], found[2], re.findall(r"'([^']*)'", found[3]))
    return [list(range(devices))]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _iota(text: str) -> list[list[int]]:
    """Parses the iota form [groups, size]<=[shape]T(order)."""
    found = re.match(r"\[([\d,]+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?)?", text)
    if found is None:
        return []
    sizes = _numbers(found[1])
    shape = _numbers(found[2] or found[1])
    order = _numbers(found[3]) if found[3] else list(range(len(shape)))
    flat = _transposed(list(range(math.prod(shape))), shape, order)
    width = math.prod(sizes[1:]) if len(sizes) > 1 else len(flat)
    return [flat[start : start + width] for start in range(0, len(flat), width)]


def _transposed(flat: list[int], shape: Sequence[int], order: Sequence[int]) -> list[int]:
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    places = [0]
    for axis in order:
        places = [place + index * strides[axis] for place in places for index in range(shape[axis])]
    return [flat[place] for place in places]


def _by_axes(axes: str, ids: str | None, chosen: Sequence[str]) -> list[list[int]]:
    """Parses mesh['a'=2,'b'=4] {'b'}: groups along named axes of a mesh of the devices in order, or of `ids`.

    A sub-axis, 'a':(1)2, counts as the whole axis.
    """
    named = re.findall(r"'([^']*)'=(\d+)", axes)
    shape = [int(size) for _, size in named]
    flat = (
        _iota(re.sub(r"^\[([\d,]+)\](?=T)", lambda m: f"[{math.prod(_numbers(m[1]))}]<=[{m[1]}]", ids))[0]
        if ids
        else None
    )
    flat = flat or list(range(math.prod(shape)))
    inside = [index for index, (name, _) in enumerate(named) if name in chosen]
    outside = [index for index in range(len(shape)) if index not in inside]
    ordered = _transposed(flat, shape, [*outside, *inside])
    width = math.prod(shape[index] for index in inside)
    return [ordered[start : start + width] for start in range(0, len(ordered), width)]
