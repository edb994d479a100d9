"""The collectives of a compiled program, read from its text, loops counted as often as they run."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16,
         "s16": 16, "u16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{[^}]*\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_COLLECTIVE = re.compile(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?$")


class Program:
    """The computations of a program in XLA's text form."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[tuple[str, str, str, str]]] = {}
        self.entry = ""
        current: list[Any] = []
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                name = line.removeprefix("ENTRY ").split(" ")[0].removeprefix("%")
                current = self.computations.setdefault(name, [])
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif found := _LINE.match(line):
                current.append((found[1], found[2], found[3], found[4]))

    def runs(self) -> list[tuple[str, int]]:
        """Returns the computations that run as such (not inside a fusion), with how often each does."""
        found: list[tuple[str, int]] = []

        def visit(name: str, times: int) -> None:
            found.append((name, times))
            for _, _, operation, rest in self.computations.get(name, []):
                if operation == "while":
                    condition, body = _called(rest, "condition"), _called(rest, "body")
                    visit(body, times * self._trips(condition))
                elif operation == "call":
                    visit(_called(rest, "to_apply"), times)

        visit(self.entry, 1)
        return found

    def _trips(self, condition: str) -> int:
        """Returns how often a loop runs: the number its counter, which starts at 0, is compared with."""
        numbers = [re.match(r"(\d+)\)", rest) for _, _, operation, rest in self.computations.get(condition, [])
                   if operation == "constant"]  # fmt: skip
        limits = [int(number[1]) for number in numbers if number]
        return max(limits, default=1)

    def collectives(self) -> dict[str, dict[str, int]]:
        """Returns count and bytes of each kind of collective, a device and step: the larger of operand and result."""
        found: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})
        seen: set[str] = set()

        def visit(name: str, times: int) -> None:
            types = {line[0]: line[1] for line in self.computations.get(name, [])}
            for _, kind, operation, rest in self.computations.get(name, []):
                if match := _COLLECTIVE.match(operation):
                    channel = re.search(r"channel_id=(\d+)", rest)
                    key = f"{match[1]}{channel[1]}" if channel else f"{name}{rest}"
                    if key in seen:  # one asynchronous collective appears in each fusion that overlaps it
                        continue
                    seen.add(key)
                    label = "reduce-scatter" if name.startswith("all-reduce-scatter") else match[1]
                    operands = sum(_bytes(types.get(operand, "")) for operand in _operands(rest))
                    result = max(map(_bytes, _parts(kind)), default=0) if match[2] else _bytes(kind)
                    found[label]["count"] += times
                    found[label]["bytes"] += times * max(operands, result)
                elif called := _called(rest, "calls"):
                    visit(called, times)

        for name, times in self.runs():
            visit(name, times)
        return {kind: dict(found[kind]) for kind in sorted(found)}


def _called(rest: str, attribute: str) -> str:
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", rest)
    return found[1] if found else ""


def _operands(rest: str) -> list[str]:
    depth, end = 1, len(rest)
    for i, char in enumerate(rest):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            end = i
            break
    return re.findall(r"%([\w.\-]+)", rest[:end])


def _parts(kind: str) -> list[str]:
    return [found[0] for found in _ARRAY.finditer(kind)]


def _bytes(kind: str) -> int:
    total = 0
    for found in _ARRAY.finditer(kind):
        total += math.prod(int(n) for n in found[2].split(",") if n) * _BITS.get(found[1], 0) // 8
    return total
