"""The model's own names for the operations of a compiled program."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vit_flax.plan.hlo import Computation, Operation, Program

_NOT_A_MODULE = re.compile(r".*[().\[\]<>].*|while|body|cond|closed_call|checkpoint|rematted_computation|branch_\d+.*|"
                           r"custom_vjp_call.*|custom_jvp_call.*|pjit|core_call|shard_map|scan|remat.*|jvp|vmap|"
                           r"transpose")  # fmt: skip
_DIFFERENTIATED = re.compile(r"(?:transpose\()?jvp\((\w+)\)*")  # blocks that have a backward pass of their own
_NO_PASS = ("other", "optimizer", "images", "ema")  # not differentiated
_BLOCK = re.compile(r"(blocks?|layers?|encoderblock)(_\d+)?$|encoderblock_\d+")


def label(op_name: str) -> str:
    """Returns the module and the pass of an operation's op_name, such as 'blocks/attn/qkv, backward'.

    Named scopes count as modules. Operations outside all of them are 'blocks' in a loop, 'loss' where they are
    differentiated, and otherwise 'other'.
    """
    if op_name.startswith(("state", "params", "batch")):
        return "parameters, state and batch"
    first = op_name.split(";")[0]
    parts = [_unwrapped(part.strip("()")) for part in _segments(first.replace("/(", "/").rstrip(")"))[:-1]]
    modules = [_BLOCK.sub("blocks", part) for part in parts if part and not _NOT_A_MODULE.fullmatch(part)]
    is_loop = "/while" in first or "_run_blocks" in first
    name = "/".join(_once(modules)) or ("blocks" if is_loop else "loss" if "jvp(" in first else "other")
    if "transpose(" in first:
        return f"{name}, {'recomputed' if 'rematted_computation' in first else 'backward'}"
    return name if name in _NO_PASS else f"{name}, forward"


def _once(modules: list[str]) -> list[str]:
    """Returns a path without its repetition, which a part has that is computed again by itself."""
    for size in range(len(modules) // 2, 0, -1):
        if modules[-size:] == modules[-2 * size : -size]:
            return modules[:-size]
    return modules


def _unwrapped(part: str) -> str:
    found = _DIFFERENTIATED.fullmatch(part)
    return found[1] if found and _BLOCK.fullmatch(found[1]) else part


def _segments(op_name: str) -> list[str]:
    """Splits at slashes outside parentheses."""
    parts, depth, current = [], 0, ""
    for char in op_name:
        depth += (char in "(") - (char in ")")
        if char == "/" and depth <= 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current]


def label_of(program: Program, computation: Computation, operation: Operation) -> str:
    """Returns the label of a fusion's first product, of its op_name, of its last operation, or of a copy's operand."""
    inside = list(_inside(program, operation))
    products = [inner.op_name for inner in inside if inner.opcode in ("dot", "convolution") and inner.op_name]
    names = [*products, operation.op_name, *(inner.op_name for inner in reversed(inside))]
    for name in names:
        if name:
            return label(name)
    seen = operation
    for _ in range(8):  # operands of copies
        if not seen.operands or seen.operands[0] not in computation:
            break
        seen = computation[seen.operands[0]]
        if seen.op_name:
            return label(seen.op_name)
    return "other"


def _inside(program: Program, operation: Operation) -> Iterator[Operation]:
    for inner in program.computations.get(operation.attribute("calls"), {}).values():
        yield inner
        yield from _inside(program, inner)
