"""Folders of torch.distributed.checkpoint (FSDP writes them), read by torch's own reader, a tensor at a time.

A folder's table of contents, `.metadata`, is a pickle: it is read by an unpickler that knows the classes of such tables
and no others. Of the contents only tensors are ever asked for: torch reads these by weights_only.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.convert.checkpoint import Checkpoint, check_listing, one_line, to_numpy
from vit_flax.convert.rules import ConversionError
from vit_flax.convert.stand_ins import STAND_INS, Inert
from vit_flax.convert.torch_file import import_torch

TABLE = ".metadata"
_MAX_TABLE = 64 << 20
_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_METADATA, name) for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
}  # fmt: skip


class _Table(pickle.Unpickler):
    """Unpickles a .metadata file: its own classes, and inert placeholders for storage paths."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and name in _DTYPES:
            return super().find_class(module, name)
        if f"{module}.{name}" in STAND_INS and module.startswith("pathlib"):
            return Inert
        raise ConversionError(f"its {TABLE} names {one_line(f'{module}.{name}')[:100]}, which no such table needs")


_DTYPES = {
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "complex128", "float8_e4m3fn", "float8_e5m2", "strided", "layout",
}  # fmt: skip


def read_distributed(folder: Path) -> Checkpoint:
    """Opens a folder of torch.distributed.checkpoint.

    Raises:
        ConversionError: its table of contents is broken or names what it has no need of.
    """
    torch = import_torch(folder)
    from torch.distributed.checkpoint import api, filesystem
    from torch.distributed.checkpoint import metadata as kinds
    from torch.distributed.checkpoint.state_dict_loader import load

    table = _read_table(folder, kinds)
    entries = table.state_dict_metadata
    try:
        tensors = {name: entry for name, entry in entries.items() if isinstance(entry, kinds.TensorStorageMetadata)}
        shapes = {str(name): tuple(int(side) for side in entry.size) for name, entry in tensors.items()}
        dtypes = {str(name): str(entry.properties.dtype).removeprefix("torch.") for name, entry in tensors.items()}
        files = {str(info.relative_path) for info in table.storage_data.values()}
    except Exception as error:  # values of any type may stand in a table
        raise ConversionError(f"{folder}: its {TABLE} is broken: {one_line(repr(error))}") from error
    skipped = {str(name): "bytes" for name in entries if name not in tensors}
    check_listing(str(folder), shapes)
    if not shapes:
        raise ConversionError(f"{folder}: holds no tensors")
    for file in files:
        if Path(file).name != file or not (folder / file).is_file():
            raise ConversionError(f"{folder}: its {TABLE} names the file {one_line(file)[:100]}, which is not there")

    class Reader(filesystem.FileSystemReader):
        def read_metadata(self, *_args: Any, **_kwargs: Any) -> Any:
            return table

    def read(name: str) -> np.ndarray:
        try:
            into = {name: torch.empty(shapes[name], dtype=tensors[name].properties.dtype)}
            with warnings.catch_warnings(action="ignore"):
                load(into, storage_reader=Reader(folder), no_dist=True)
        except (Exception, api.CheckpointException) as error:  # torch raises errors of any type on a broken file
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ConversionError(f"{folder}: {name}: torch cannot load it: {one_line(reason)}") from error
        return to_numpy(name, into[name])

    return Checkpoint(shapes, read, str(folder), skipped=skipped, dtypes=dtypes)


def _read_table(folder: Path, kinds: Any) -> Any:
    path = folder / TABLE
    if path.stat().st_size > _MAX_TABLE:
        raise ConversionError(f"{path}: has {path.stat().st_size} bytes, more than {_MAX_TABLE}")
    try:
        with path.open("rb") as file:
            table = _Table(file).load()
        if not isinstance(table, kinds.Metadata):
            raise ConversionError(f"{path}: is no table of contents of torch.distributed.checkpoint")
        table.storage_meta = kinds.StorageMeta()
    except ConversionError as error:
        raise ConversionError(f"{folder}: {error}") from error
    except Exception as error:  # pickle raises errors of any type on a broken file
        raise ConversionError(f"{path}: is broken: {one_line(error)}") from error
    return table
