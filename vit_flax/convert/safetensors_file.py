"""safetensors files: a JSON header of names, dtypes and offsets, then the data, memory-mapped tensor by tensor."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vit_flax.convert.checkpoint import Checkpoint, check_listing, check_names, one_line
from vit_flax.convert.rules import ConversionError

CONFIG_KEY = "vit_flax_config"  # where our own files keep the config, in the metadata
PREPROCESSING_KEY = "vit_flax_preprocessing"  # and the preprocessing
_MAX_HEADER = 8 << 20  # a header of 10,000 tensors has about one megabyte

_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "BF16": ml_dtypes.bfloat16, "C64": np.complex64,
}  # fmt: skip


def read_safetensors(path: Path) -> Checkpoint:
    """Opens a safetensors file.

    Raises:
        ConversionError: the file breaks a rule of the format: a header longer than the file, a name that comes twice,
            tensors that overlap, leave a hole or end elsewhere than the file.
    """
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > state.st_size - 8:
            raise _broken(path, f"its header should have {header_bytes} bytes, the file has {state.st_size}")
        if header_bytes > _MAX_HEADER:
            raise _broken(path, f"its header has {header_bytes} bytes, more than {_MAX_HEADER}")
        raw = file.read(header_bytes)
    header, metadata = _parse(path, raw)
    check_names(str(path), header)
    start = 8 + header_bytes
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    _check_places(path, entries, state.st_size - start)

    def read(name: str) -> np.ndarray:
        dtype, shape, begin, end = entries[name]
        if begin == end:
            return np.empty(shape, dtype)
        now = path.stat()
        if (now.st_dev, now.st_ino, now.st_size) != (state.st_dev, state.st_ino, state.st_size):
            raise ConversionError(f"{path}: was changed while it was read")
        # a mapping of its own, freed with the array: no more of the file is resident than is in use
        return np.memmap(path, np.uint8, "r", start + begin, (end - begin,)).view(dtype).reshape(shape)

    shapes = {name: shape for name, (_, shape, _, _) in entries.items()}
    check_listing(str(path), shapes)
    config, preprocessing = (_stored(path, metadata, key) for key in (CONFIG_KEY, PREPROCESSING_KEY))
    dtypes = {name: np.dtype(dtype).name for name, (dtype, *_) in entries.items()}
    return Checkpoint(shapes, read, str(path), config, preprocessing=preprocessing, dtypes=dtypes)


def _broken(path: Path, why: Any) -> ConversionError:
    return ConversionError(f"{path}: is no valid safetensors file: {one_line(why)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:100]!r} comes twice")
        found[name] = value
    return found


def _parse(path: Path, raw: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _broken(path, error) from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "its __metadata__ is no mapping of texts")
    return header, metadata


def _entry(path: Path, name: str, entry: Any) -> tuple[Any, tuple[int, ...], int, int]:
    """Returns dtype, shape, first byte and byte after the last."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"{name[:100]!r} has not just dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        told = f"{one_line(name[:100])} is of type {repr(dtype)[:20]}"
        raise ConversionError(f"{path}: {told}, which this library does not read")
    if not (_are_sizes(shape) and len(shape) <= 8 and _are_sizes(offsets) and len(offsets) == 2):
        raise _broken(path, f"{name[:100]!r} has a shape or offsets that are none")
    if offsets[1] - offsets[0] != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        raise _broken(path, f"{name[:100]!r} has {offsets[1] - offsets[0]} bytes for {dtype} of shape {shape[:20]}")
    return _DTYPES[dtype], tuple(shape), offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(side) is int and 0 <= side < 1 << 63 for side in value)


def _check_places(path: Path, entries: Mapping[str, tuple[Any, tuple[int, ...], int, int]], size: int) -> None:
    reached = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != reached:
            raise _broken(path, f"{name[:100]!r} begins at byte {begin} and the tensor before it ends at {reached}")
        reached = end
    if reached != size:
        raise _broken(path, f"its tensors have {reached} bytes, the file has room for {size}")


def _stored(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any] | None:
    if key not in metadata:
        return None
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: its metadata {key!r} is no JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: its metadata {key!r} is no JSON object")
    return value


def write_safetensors(
    path: str,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, object],
    preprocessing: Mapping[str, object] | None = None,
) -> None:
    """Writes the tensors, with config and preprocessing in the metadata; equal contents are equal bytes.

    The safetensors library writes the metadata's keys in random order and leaves a file that only its owner may read.
    """
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(config)}
    if preprocessing:
        metadata[PREPROCESSING_KEY] = json.dumps(preprocessing)
    header: dict[str, Any] = {"__metadata__": metadata}
    # as the library orders them: the widest types first, so that every tensor begins at a multiple of its item's size
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in names:
        array = tensors[name]
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _name_of(name, array), "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            if tensors[name].nbytes:
                array = np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<"))
                file.write(array.reshape(-1).view(np.uint8).data)


def _name_of(name: str, array: np.ndarray) -> str:
    for known, dtype in _DTYPES.items():
        if array.dtype.newbyteorder("=") == dtype:
            return known
    raise ConversionError(f"{name}: is of type {array.dtype}, which safetensors files do not hold")
