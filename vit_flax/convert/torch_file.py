"""torch.save files: pickles, read by torch's weights_only unpickler after a static scan."""

from __future__ import annotations

import ctypes
import dataclasses
import io
import mmap
import sys
import warnings
import weakref
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vit_flax.convert.checkpoint import Checkpoint, from_mapping, leaves, one_line
from vit_flax.convert.npz_file import open_zip
from vit_flax.convert.pickle_scan import check_pickle
from vit_flax.convert.rules import ConversionError
from vit_flax.convert.stand_ins import stand_ins

# Before 2.10 a pickle could break out of weights_only (CVE-2025-32434, CVE-2026-24747).
OLDEST_TORCH = (2, 10)
_MAX_PICKLE = 16 << 20  # bytes; the pickle of 10,000 tensors has about two million, their numbers not counted


def read_torch_zip(path: Path) -> Checkpoint:
    """Opens a torch.save file of torch 1.6 and later; tensors are memory-mapped.

    Raises:
        ConversionError: the pickle calls what weights have no need of (named), or torch refuses it.
    """
    with open_zip(path) as archive:
        pickles = [info for info in archive.infolist() if info.filename.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ConversionError(f"{path}: is a zip file without tensors")
        if any(info.filename.endswith("/constants.pkl") for info in archive.infolist()):
            raise ConversionError(f"{path}: is a TorchScript program; save its state_dict() instead")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ConversionError(f"{path}: is packed, which torch.save never does")
        if pickles[0].file_size > _MAX_PICKLE:
            raise ConversionError(f"{path}: its pickle has {pickles[0].file_size} bytes, more than {_MAX_PICKLE}")
        with archive.open(pickles[0]) as file:
            named = check_pickle(path, io.BytesIO(file.read()))
        foreign = any(
            info.filename.endswith("/byteorder") and archive.read(info) != sys.byteorder.encode()
            for info in archive.infolist()
        )
    return _load(path, named, mapped=not foreign)  # torch swaps the byte order in memory


def read_torch_legacy(path: Path) -> Checkpoint:
    """Opens a torch.save file of before torch 1.6: five pickles, then the storages. It is read as a whole.

    Raises:
        ConversionError: a pickle calls what weights have no need of (named), or torch refuses it.
    """
    with path.open("rb") as file:
        head = io.BytesIO(file.read(_MAX_PICKLE))
    named: set[str] = set()
    for _ in range(5):  # a magic number, the version, the machine, the object, the storages' keys
        named |= check_pickle(path, head)
    return _load(path, named, mapped=False)


def _load(path: Path, named: set[str], mapped: bool) -> Checkpoint:
    torch = import_torch(path)
    storages: set[int] = set()

    def remember(storage: Any, _location: str) -> Any:
        storages.add(storage.data_ptr())
        return storage

    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(stand_ins(named)):
            value = torch.load(path, map_location=remember, weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises errors of any type on a broken file
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{path}: torch cannot load it: {one_line(first)}") from error
    if isinstance(value, torch.Tensor):
        raise ConversionError(f"{path}: holds one tensor without a name")
    checkpoint = from_mapping(value, str(path))
    tensors = {name: leaf for name, leaf in leaves(value) if name in checkpoint.shapes}
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConversionError(f"{path}: {name} is a view larger than what it views")
    if not mapped or sys.platform != "linux":
        return checkpoint

    def read(name: str) -> np.ndarray:
        array, tensor = checkpoint.reader(name), tensors[name]
        if tensor.untyped_storage().data_ptr() in storages and array.ctypes.data == tensor.data_ptr():
            weakref.finalize(array, _let_go, tensor).atexit = False
        return array

    return dataclasses.replace(checkpoint, reader=read)


def _let_go(tensor: Any) -> None:
    """Drops a tensor's pages of the mapped file, which would count as this process's memory until it ends.

    They are read again should anybody look: the mapping is private and nobody has written to it.
    """
    storage = tensor.untyped_storage()
    start = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def import_torch(path: object, reading: bool = True) -> Any:
    """Returns torch, or ConversionError saying how to get it, or (for reading) which one is needed."""
    try:
        import torch
    except ImportError as error:
        raise ConversionError(f"{path}: PyTorch's files need torch: pip install 'vit-linen[torch]'") from error
    if reading and tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ConversionError(f"{path}: torch {torch.__version__} reads pickles unsafely; needs {oldest} or later")
    return torch


def write_torch(path: str, tensors: Mapping[str, np.ndarray], _config: Mapping[str, object]) -> None:
    """Writes the tensors alone, as torch.save does a state_dict."""
    torch = import_torch(path, reading=False)

    def to_torch(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    try:
        torch.save({name: to_torch(array) for name, array in tensors.items()}, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(one_line(error)) from error
