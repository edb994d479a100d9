"""Flax's .msgpack: nested mappings of arrays, as flax.serialization writes them. Nothing in one can run.

Reference: flax.serialization. Arrays are extensions of type 1 (shape, dtype's name, bytes), NumPy's scalars of type 3;
an array of more than a gigabyte is a mapping of pieces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vit_flax.convert.checkpoint import MAX_TENSORS, Checkpoint, from_mapping, one_line
from vit_flax.convert.rules import ConversionError

_ARRAY, _SCALAR = 1, 3
_PIECES = "__msgpack_chunked_array__"
_PIECE_BYTES = 1 << 30
_MAX_LIST = 1000
_DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64",
    "complex64", "complex128",
)  # fmt: skip


def is_msgpack(head: bytes) -> bool:
    """Returns whether these leading bytes are those of a msgpack map."""
    return 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)


def read_msgpack(path: Path) -> Checkpoint:
    """Opens a .msgpack of Flax. It is read as a whole.

    Raises:
        ConversionError: it is broken, or holds what is no array.
    """
    import msgpack

    data: Any = np.memmap(path, np.uint8, "r")
    try:
        value = msgpack.unpackb(
            memoryview(data), ext_hook=_extension, strict_map_key=True, max_array_len=_MAX_LIST,
            max_map_len=MAX_TENSORS, max_str_len=1 << 16,
        )  # fmt: skip
        value = _joined(value)
    except ConversionError:
        raise
    except Exception as error:  # msgpack raises errors of any type on a broken file
        raise ConversionError(f"{path}: is a broken msgpack file: {one_line(error)}") from error
    return from_mapping(value, str(path))


def _extension(code: int, data: bytes) -> Any:
    import msgpack

    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"has an extension of type {code}, which Flax does not write")
    shape, name, numbers = msgpack.unpackb(data, max_array_len=_MAX_LIST)
    if name not in (*_DTYPES, "bfloat16"):
        raise ValueError(f"has an array of type {str(name)[:30]}")
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    if not isinstance(numbers, bytes) or not all(type(side) is int and 0 <= side < 1 << 40 for side in shape):
        raise ValueError("has an array without shape or numbers")
    if len(shape) > 8 or math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"has an array of {len(numbers)} bytes for {name} of shape {tuple(shape)[:8]}")
    return np.frombuffer(numbers, dtype).reshape(shape)


def _joined(value: Any, depth: int = 0) -> Any:
    """Returns the mappings with chunked arrays joined."""
    if not isinstance(value, Mapping) or depth > 64:
        return value
    if value.get(_PIECES) is not True:
        return {name: _joined(item, depth + 1) for name, item in value.items()}
    pieces, shape = value.get("chunks"), value.get("shape")
    if not isinstance(pieces, Mapping) or not isinstance(shape, Mapping):
        raise ValueError("has an array in pieces without its pieces or shape")
    arrays = [pieces[str(i)] for i in range(len(pieces))]
    return np.concatenate([np.ravel(array) for array in arrays]).reshape(
        [int(shape[str(i)]) for i in range(len(shape))]
    )


def write_msgpack(path: str, tensors: Mapping[str, np.ndarray], _config: Mapping[str, object]) -> None:
    """Writes the tensors alone, nested at the slashes in their names."""
    import msgpack

    def packed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: packed(item) for name, item in value.items()}
        if value.nbytes > _PIECE_BYTES:
            step = _PIECE_BYTES // value.itemsize
            flat = value.reshape(-1)
            pieces = [flat[i : i + step] for i in range(0, len(flat), step)]
            return {
                _PIECES: True,
                "shape": {str(i): side for i, side in enumerate(value.shape)},
                "chunks": {str(i): packed(piece) for i, piece in enumerate(pieces)},
            }
        content = (value.shape, value.dtype.name, np.ascontiguousarray(value).tobytes())
        return msgpack.ExtType(_ARRAY, msgpack.packb(content, use_bin_type=True))

    with open(path, "wb") as file:
        file.write(msgpack.Packer(strict_types=True).pack(packed(nested(tensors))))


def nested(tensors: Mapping[str, object]) -> dict[str, object]:
    """Returns named arrays as mappings that are nested at the slashes in their names."""
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *levels, last = name.split("/")
        place = tree
        for level in levels:
            place = place.setdefault(level, {})
        place[last] = array
    return tree
