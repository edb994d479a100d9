"""A static scan of a pickle's opcodes and globals before torch reads it; nothing in it runs.

torch's weights_only has the last word. This look comes first because it needs no torch, keeps torch from building what
should not even be built (sparse tensors can be read out of bounds), and can say what is wrong. Of the operations
allowed here, only GLOBAL names anything, and it carries the name itself: no detour through the memo can hide one.

Names of plain data (`stand_ins`) are allowed since nothing of them is imported. One that torch calls as it is needs a
look at what it is given: _codecs.encode, by which pickles hold bytes.
"""

from __future__ import annotations

import dataclasses
import pickletools
from pathlib import Path
from typing import Any, BinaryIO

from vit_flax.convert.checkpoint import one_line
from vit_flax.convert.rules import ConversionError
from vit_flax.convert.stand_ins import STAND_INS

_MAX_OPERATIONS = 500_000  # the pickle of 10,000 tensors does 250,000

_STORAGES = (
    "Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexDouble",
    "ComplexFloat",
)  # fmt: skip
_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex128",
    "complex64",
)  # fmt: skip
_ALLOWED = {
    *(f"torch {name}Storage" for name in _STORAGES),
    *(f"torch {name}" for name in (*_DTYPES, "Size", "device")),
    *(f"torch._utils _rebuild_{name}" for name in ("tensor", "tensor_v2", "parameter", "parameter_with_state")),
    "torch._tensor _rebuild_from_type_v2",
    "torch.nn.parameter Parameter",
    "collections OrderedDict",
    "collections Counter",
    *(f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("set", "complex")),
}
_PYTHON_2 = {"long": "int", "unicode": "str", "xrange": "range"}
_ENCODE = "_codecs encode"  # characters of a text that encodes bytes
# Those of weights_only's unpickler; OBJ, INST, STACK_GLOBAL, EXT and the like are not among them.
_OPERATIONS = {
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT", "BINUNICODE",
    "BUILD", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "GLOBAL", "LONG1", "LONG_BINGET", "LONG_BINPUT",
    "MARK", "NEWFALSE", "NEWOBJ", "NEWTRUE", "NONE", "PROTO", "REDUCE", "SETITEM", "SETITEMS", "SHORT_BINSTRING",
    "STOP", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
}  # fmt: skip
_KINDS = {
    "_rebuild_sparse_tensor": "sparse", "_rebuild_qtensor": "quantised", "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "meta, without values", "_rebuild_tensor_v3": "of a type no model has",
}  # fmt: skip


def check_pickle(path: Path, file: BinaryIO) -> set[str]:
    """Scans a pickle's opcodes without running any, and returns its globals ('module.name').

    Raises:
        ConversionError: it is broken, long, or does or names what is not in the lists above.
    """
    memory, stack = _Texts(), _Stack()
    odd: str | None = None
    named: set[str] = set()
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count >= _MAX_OPERATIONS:
                raise ConversionError(f"{path}: its pickle has more than {_MAX_OPERATIONS} operations")
            called = memory.see(operation.name, argument)
            if called is not None:
                module, _, name = called.rpartition(" ")
                full = f"builtins.{_PYTHON_2.get(name, name)}" if module == "__builtin__" else f"{module}.{name}"
                if called not in _ALLOWED and called != _ENCODE and full not in STAND_INS:
                    raise ConversionError(f"{path}: {_refusal(called, memory.key)}")
                named.add(full)
            if operation.name not in _OPERATIONS:
                odd = odd or operation.name
            if odd is None and stack.see(operation, argument):
                raise ConversionError(f"{path}: {_refusal(_ENCODE, memory.key)}")
    except ConversionError:
        raise
    except Exception as error:  # pickletools raises all kinds on a broken pickle
        raise ConversionError(f"{path}: is a broken pickle: {one_line(error)}") from error
    if odd:
        raise ConversionError(
            f"{path}: a pickle with the operation {odd}, which torch's weights_only does not run; save the "
            "state_dict() again with torch.save and its default protocol"
        )
    return named


class _Stack:
    """The unpickler's stack, as far as calls of _codecs.encode need it: texts, globals and tuples."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.memo: dict[int, Any] = {}

    def see(self, operation: pickletools.OpcodeInfo, argument: Any) -> bool:
        """Applies an opcode, and returns whether it calls _codecs.encode for anything but Latin-1."""
        name, items = operation.name, self.items
        if name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = items[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            items.append(self.memo[argument])
        elif name == "GLOBAL":
            items.append(_ENCODER if argument == _ENCODE else None)
        elif name in ("BINUNICODE", "SHORT_BINSTRING"):
            items.append(argument if len(argument) < 20 else "")
        elif name == "REDUCE" and items[-2] is _ENCODER:
            given = items.pop()
            items[-1] = None
            return not (isinstance(given, tuple) and len(given) == 2 and given[1] in ("latin1", "latin-1"))
        else:
            before, after = operation.stack_before, operation.stack_after
            taken = []
            if pickletools.markobject in before:
                while (item := items.pop()) is not _MARK:
                    taken.append(item)
                before = before[: before.index(pickletools.markobject)]
            taken += [items.pop() for _ in before]
            if any(item is _ENCODER for item in taken):
                return True
            made: Any = tuple(reversed(taken)) if name.startswith("TUPLE") else None
            items += [_MARK if kind is pickletools.markobject else made for kind in after]
        return False


_ENCODER, _MARK = object(), object()


@dataclasses.dataclass
class _Texts:
    """The texts that a pickle has pushed so far, for messages: globals may be composed of them."""

    recent: list[str] = dataclasses.field(default_factory=list)
    memo: dict[int, str] = dataclasses.field(default_factory=dict)
    memoised: int = 0
    last: str | None = None  # the text that the opcode before pushed, if it did

    @property
    def key(self) -> str:
        """The text before the object that is being built; in a mapping its key."""
        return self.recent[-1] if self.recent else ""

    def see(self, operation: str, argument: Any) -> str | None:
        """Returns 'module name' where the opcode is a global."""
        text = argument if isinstance(argument, str) and operation not in ("GLOBAL", "INST") else None
        if operation in ("BINGET", "LONG_BINGET", "GET"):
            text = self.memo.get(int(argument))
        elif operation in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            index = self.memoised if operation == "MEMOIZE" else int(argument)
            if self.last is not None:
                self.memo[index] = self.last
            self.memoised += 1
            return None
        if text is not None:
            self.recent = [*self.recent[-1:], text[:200]]
        self.last = text
        if operation in ("GLOBAL", "INST"):
            return str(argument)
        return " ".join(self.recent) if operation == "STACK_GLOBAL" else None


def _refusal(called: str, key: str) -> str:
    name = one_line(called.replace(" ", "."))[:100]
    kind = _KINDS.get(called.split(" ")[-1])
    if kind:
        return f"{one_line(key)[:100] or 'a tensor'} is {kind} ({name}); only plain tensors can be read"
    if called.startswith("__torch__"):
        return f"is a TorchScript program ({name}); save its state_dict() instead"
    return (
        f"a pickle that calls {name}; refused, since loading it could run code. If you trust the file, load it with "
        "torch yourself and save only its weights: torch.save(model.state_dict(), ...)"
    )
