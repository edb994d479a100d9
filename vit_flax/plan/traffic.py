"""Bytes that an operation of a compiled program reads and writes, in any memory and in the device's main memory."""

from __future__ import annotations

import re

from vit_flax.plan.hlo import Array, Computation, Operation, Program, root

# no traffic of their own: aliases, or containers whose computations are counted
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
        "while", "call", "conditional", "async-start", "async-update", "async-done", "opt-barrier", "domain",
        "add-dependency", "copy-done", "slice-done", "dynamic-slice-done", "send-done", "recv-done"}  # fmt: skip
_SLICING = ("dynamic-slice", "slice", "gather")
_COLLECTIVE = re.compile(r"(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|"
                         r"collective-broadcast)(-start)?$")  # fmt: skip
_FREE_CALLS = ("ConcatBitcast", "AllocateBuffer")


def is_collective(operation: Operation) -> bool:
    """Returns whether the operation is a collective."""
    return _COLLECTIVE.match(operation.opcode) is not None


def moved(program: Program, computation: Computation, operation: Operation) -> tuple[int, int]:
    """Returns the bytes that one run reads and writes: in any memory, and in the device's main memory.

    A slice reads its own elements alone, and an in-place update writes its own alone, also inside a fusion. A fusion
    counts its operands and results alone.
    """
    if operation.opcode in FREE or operation.opcode.endswith(("-done", "-update")) or _is_free_call(operation):
        return 0, 0
    given = [array for name in operation.operands for array in _of(computation, name)]
    results = list(operation.arrays)
    if operation.opcode in ("copy-start", "slice-start", "dynamic-slice-start"):
        # (destination, source, context) of a copy, ((source), destination, context) of a slice
        target = results[0] if operation.opcode == "copy-start" else results[1]
        source = results[1] if operation.opcode == "copy-start" else results[0]
        return _sum([(target.bytes, source), (target.bytes, target)])
    if is_collective(operation):
        if operation.opcode.endswith("-start"):  # its result is the operands and the results, and done's
            results = results[len(given) :] or results
        return _sum([(array.bytes, array) for array in given + results])
    if operation.opcode == "fusion":
        return _fusion(program, computation, operation)
    if operation.opcode in _SLICING:
        return _sum([(results[0].bytes, given[0]), (results[0].bytes, results[0])])
    if operation.opcode == "dynamic-update-slice":
        return _sum([(given[1].bytes, given[1]), (given[1].bytes, results[0])])
    if operation.opcode == "scatter":
        return _sum([(given[2].bytes, given[2]), (given[1].bytes, given[1]), (2 * given[2].bytes, results[0])])
    if operation.opcode == "custom-call":
        results = _without_workspace(operation, results)
    return _sum([(array.bytes, array) for array in given + results])


def _sum(parts: list[tuple[int, Array]]) -> tuple[int, int]:
    return sum(size for size, _ in parts), sum(size for size, array in parts if array.on_device)


def _of(computation: Computation, name: str) -> tuple[Array, ...]:
    return computation[name].arrays if name in computation else ()


def _is_free_call(operation: Operation) -> bool:
    return operation.opcode == "custom-call" and any(f'"{name}"' in operation.attributes for name in _FREE_CALLS)


def _without_workspace(operation: Operation, results: list[Array]) -> list[Array]:
    """Drops libraries' workspaces, which are not traffic."""
    is_library = re.search(r'custom_call_target="__(cublas|cudnn)', operation.attributes)
    if is_library and len(results) > 1 and results[-1].dtype in ("s8", "u8") and len(results[-1].shape) == 1:
        return results[:-1]
    return results


def _fusion(program: Program, computation: Computation, operation: Operation) -> tuple[int, int]:
    called = program.computations.get(operation.attribute("calls"), {})
    users = _users(called)
    parts: list[tuple[int, Array]] = []
    for inner in called.values():
        if inner.opcode == "parameter":
            index = int(inner.arguments)
            outer = _of(computation, operation.operands[index]) if index < len(operation.operands) else inner.arrays
            for array in outer:
                parts.append((min(array.bytes, read(program, called, users, inner.name)), array))
    last = root(called)
    elements = list(last.operands) if last.opcode == "tuple" else [last.name]
    for name, array in zip(elements, operation.arrays, strict=False):
        parts.append((min(array.bytes, written(program, called, name)), array))
    return _sum(parts)


def _users(computation: Computation) -> dict[str, list[Operation]]:
    users: dict[str, list[Operation]] = {}
    for operation in computation.values():
        for name in dict.fromkeys(operation.operands):
            users.setdefault(name, []).append(operation)
    return users


def read(program: Program, computation: Computation, users: dict[str, list[Operation]], name: str) -> int:
    """Returns the bytes of an array that a fused computation reads: the slices' where it is sliced."""
    whole = sum(array.bytes for array in computation[name].arrays)
    total = 0
    for user in users.get(name, ()):
        first = user.operands[0] == name
        if user.opcode in _SLICING and first:
            total += user.arrays[0].bytes
        elif user.opcode == "dynamic-update-slice" and first:
            total += 0 if _in_place(computation, users, user) else whole
        elif user.opcode == "bitcast":
            total += read(program, computation, users, user.name)
        elif (user.opcode == "tuple" and user.is_root) or is_collective(user):
            continue  # passed on; a collective is counted by itself
        elif user.opcode == "fusion":
            called = program.computations.get(user.attribute("calls"), {})
            inner = [op for op in called.values() if op.opcode == "parameter"]
            names = [op.name for op in inner if user.operands[int(op.arguments)] == name]
            inner_users = _users(called)
            total += sum(read(program, called, inner_users, parameter) for parameter in names)
            if _origin(called, root(called).name) in names:  # a bitcast, read by its users
                total += read(program, computation, users, user.name)
        else:
            total += whole
        if total >= whole:
            return whole
    return total


def _in_place(computation: Computation, users: dict[str, list[Operation]], update: Operation) -> bool:
    """Whether a dynamic-update-slice is in place, so that the other elements are not copied."""
    if update.is_root:
        return True
    return all(
        (user.opcode in ("bitcast", "tuple") or _is_update_of(user, update)) and _in_place(computation, users, user)
        for user in users.get(update.name, ())
    )


def _is_update_of(operation: Operation, updated: Operation) -> bool:
    return operation.opcode == "dynamic-update-slice" and operation.operands[0] == updated.name


def written(program: Program, computation: Computation, name: str) -> int:
    """Returns the bytes of a result that a fused computation writes: the update's where it is in place."""
    operation = computation[name]
    if operation.opcode == "bitcast":
        return written(program, computation, operation.operands[0])
    if operation.opcode == "parameter" or _is_free_call(operation):
        return 0  # an alias of the operand, or nothing yet
    if operation.opcode == "dynamic-update-slice":
        updated, update, *_ = operation.operands
        return written(program, computation, updated) + computation[update].arrays[0].bytes
    if is_collective(operation):
        return 0  # counted by itself
    if operation.opcode == "fusion" and len(operation.arrays) == 1:
        called = program.computations.get(operation.attribute("calls"), {})
        return written(program, called, root(called).name)
    return sum(array.bytes for array in operation.arrays)


def _origin(computation: Computation, name: str) -> str:
    """Returns the name of the array that an operation is a bitcast of."""
    while computation[name].opcode == "bitcast":
        name = computation[name].operands[0]
    return name
