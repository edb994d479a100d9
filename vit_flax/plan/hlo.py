"""Parses a compiled program's HLO text: computations, their trip counts, and arrays with their layouts."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16,
         "s16": 16, "u16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_END = re.compile(r"\}(, execution_thread=.*)?")  # of a computation
_CONTAINERS = {"while": ("body",), "call": ("to_apply",), "async-start": ("calls",)}


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a type: its size in memory, padded to whole tiles, and its memory space."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    on_device: bool  # in the device's main memory, not in VMEM ('S(1)') or the host's


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction; `attributes` is the text after the operands."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    arguments: str  # between the parentheses
    is_root: bool

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result, tuples flattened."""
        return arrays(self.type)

    def attribute(self, name: str) -> str:
        """Returns the value of an attribute such as 'calls' or 'body'; '' where it has none."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """Returns the numbers of an attribute such as lhs_contracting_dims={1}."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(n) for n in found[1].split(",") if n) if found else ()

    @property
    def op_name(self) -> str:
        """The op_name of its metadata; '' for operations that the compiler added."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1].replace("\\'", "'") if found else ""


Computation = dict[str, Operation]  # by name, in the order of the schedule


class Program:
    """The computations of a program in XLA's text form."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        current: Computation = {}
        for line in _statements(text):
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                name = line.removeprefix("ENTRY ").split(" ")[0].removeprefix("%")
                current = self.computations.setdefault(name, {})
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif found := _LINE.match(line):
                inside, rest = _split(found[4])
                operands = () if found[3] in ("parameter", "constant") else tuple(re.findall(r"%([\w.\-]+)", inside))
                is_root = line.lstrip().startswith("ROOT ")
                current[found[1]] = Operation(found[1], found[2], found[3], operands, rest, inside, is_root)

    def inner(self, operation: Operation) -> list[tuple[str, int]]:
        """Returns the computations that an operation runs and their trip counts; a fusion runs none."""
        if operation.opcode == "conditional":
            found = re.search(r"branch_computations=\{([^}]*)\}", operation.attributes)
            names = re.findall(r"%?([\w.\-]+)", found[1]) if found else []
            names = names or [operation.attribute(f"{branch}_computation") for branch in ("true", "false")]
            return [(max(names, key=lambda name: len(self.computations.get(name, ()))), 1)]  # the longest counts
        names = _CONTAINERS.get(operation.opcode, ())
        trips = self.trips(operation) if operation.opcode == "while" else 1
        return [(operation.attribute(name), trips) for name in names]

    def trips(self, loop: Operation) -> int:
        """Returns a loop's trip count: the compiler's known_trip_count, or the bound of its counter over its step.

        The counter starts at 0; its step is larger than 1 where the compiler has unrolled the loop.
        """
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        limit = max(self._constants(loop.attribute("condition")), default=1)
        return -(-limit // self._step(loop))

    def _step(self, loop: Operation) -> int:
        condition = self.computations.get(loop.attribute("condition"), {})
        body = self.computations.get(loop.attribute("body"), {})
        places = [re.search(r"index=(\d+)", operation.attributes) for operation in condition.values()
                  if operation.opcode == "get-tuple-element"]  # fmt: skip
        if len(places) != 1 or places[0] is None or not body:
            return 1
        advanced = body.get(root(body).operands[int(places[0][1])])
        if advanced is None or advanced.opcode != "add":
            return 1
        terms = [body[name] for name in advanced.operands if name in body]
        steps = [int(term.arguments) for term in terms if term.opcode == "constant" and term.arguments.isdigit()]
        return max(1, *steps) if steps else 1

    def _constants(self, name: str) -> Iterator[int]:
        for operation in self.computations.get(name, {}).values():
            if operation.opcode == "constant" and re.fullmatch(r"\d+", operation.arguments):
                yield int(operation.arguments)
            elif called := operation.attribute("calls"):  # on GPUs the comparison is in a fusion
                yield from self._constants(called)

    def runs(self) -> list[tuple[str, int]]:
        """Returns the computations that run outside fusions, with the number of runs of each."""
        found: list[tuple[str, int]] = []

        def visit(name: str, times: int) -> None:
            found.append((name, times))
            for operation in self.computations.get(name, {}).values():
                for inner, trips in self.inner(operation):
                    visit(inner, times * trips)

        visit(self.entry, 1)
        return found


def root(computation: Computation) -> Operation:
    """Returns the operation whose result is the computation's."""
    return next((op for op in computation.values() if op.is_root), list(computation.values())[-1])


@functools.lru_cache(maxsize=65536)
def arrays(type_text: str) -> tuple[Array, ...]:
    """Returns the arrays of a type such as '(f32[8,4]{1,0:T(8,128)S(1)}, s32[])', tuples flattened."""
    found = []
    for match in _ARRAY.finditer(type_text):
        if match[1] not in _BITS:
            continue
        shape = tuple(int(n.removeprefix("<=")) for n in match[2].split(",") if n)
        layout = match[3] or ""
        space = re.search(r"S\((\d+)\)", layout)
        count = _filled(shape, layout)
        found.append(Array(match[1], shape, count * _BITS[match[1]] // 8, space is None or space[1] == "0"))
    return tuple(found)


def _filled(shape: tuple[int, ...], layout: str) -> int:
    """Returns the number of elements of an array in memory, its minor axes padded to whole tiles."""
    order, _, rest = layout.partition(":")
    tile = re.search(r"T\(([\d,]+)\)", rest)
    if tile is None or not shape:
        return math.prod(shape)
    sizes = [int(n) for n in tile[1].split(",")]
    axes = [int(n) for n in order.split(",") if n]  # minor to major
    filled = list(shape)
    for axis, size in zip(axes, reversed(sizes), strict=False):
        filled[axis] = -(-filled[axis] // size) * size
    return math.prod(filled)


def _statements(text: str) -> Iterator[str]:
    """Yields the lines of a program; an operation with line breaks in its attributes, as Pallas writes them, is one."""
    operation = ""
    for line in text.splitlines():
        if operation and not line.startswith(" ") and not _END.fullmatch(line):
            operation += line
            continue
        if operation:
            yield operation
        operation = line if _LINE.match(line) else ""
        if not operation:
            yield line
    if operation:
        yield operation


def _split(rest: str) -> tuple[str, str]:
    """Splits a line at the parenthesis that closes an operation's operands."""
    depth = 1
    for found in re.finditer(r"[()]", rest):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return rest[: found.start()], rest[found.end() :]
    return rest, ""
