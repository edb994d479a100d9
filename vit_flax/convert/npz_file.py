"""NumPy's .npz: a zip file with one .npy a tensor. Never with pickles."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vit_flax.convert.checkpoint import Checkpoint, check_listing, check_names, one_line
from vit_flax.convert.rules import ConversionError

_MAX_DIRECTORY = 4 << 20  # bytes of a zip file's central directory: 40,000 tensors
_MAX_INFLATION = 100  # a deflated file larger than this many times itself is taken for a bomb
_MAX_SMALL = 1 << 20
_MAX_NPY_HEADER = 10_000
_LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature, lengths of the name and of the extra field


class _Bounded(io.FileIO):
    """A file that refuses very long reads: zipfile reads the whole central directory at once."""

    limit: int | None = _MAX_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None:
            wanted = os.fstat(self.fileno()).st_size - self.tell() if size is None or size < 0 else size
            if wanted > self.limit:
                raise zipfile.BadZipFile(f"its table of contents has {wanted} bytes, more than {self.limit}")
        return super().read(-1 if size is None else size) or b""


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip file that has neither a very long central directory nor a bomb in it.

    Raises:
        ConversionError: it is broken or hostile, also when that shows only in the block of the `with`.
    """
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            file.limit = None
            infos = archive.infolist()
            inflated = sum(info.file_size for info in infos)
            if inflated > max(_MAX_INFLATION * path.stat().st_size, _MAX_SMALL):
                raise zipfile.BadZipFile(f"it claims to unpack to {inflated} bytes")
            if len({info.filename for info in infos}) != len(infos):
                raise zipfile.BadZipFile("a name comes twice in it")
            if odd := {info.compress_type for info in infos} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise zipfile.BadZipFile(f"it is packed by method {min(odd)}")
            yield archive
    except ConversionError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError) as error:
        raise ConversionError(f"{path}: is a broken zip file: {one_line(error)}") from error
    except (ValueError, KeyError, EOFError, OverflowError) as error:
        raise ConversionError(f"{path}: is a broken zip file: {one_line(error)}") from error


@dataclasses.dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    header_bytes: int  # of the .npy, before its numbers
    offset: int  # of the .npy in the file, when it is stored as it is

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(path: Path) -> Checkpoint:
    """Opens an .npz; raw two-byte items (V2) are bfloat16, which NumPy writes so.

    Raises:
        ConversionError: the file is broken, or an array holds Python objects or texts; all are named.
    """
    members: dict[str, _Member] = {}
    faults: list[str] = []
    with open_zip(path) as archive:
        check_names(str(path), archive.namelist())
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                faults.append(f"{name[:100]} is no .npy")
                continue
            try:
                members[name] = _read_header(archive, info)
            except ValueError as error:
                faults.append(f"{name[:100]} {one_line(error)}")
    if faults:
        raise ConversionError(f"{path}: refused: {'; '.join(faults[:5])}")
    shapes = {name: member.shape for name, member in members.items()}
    check_listing(str(path), shapes)
    dtypes = {name: member.dtype.name for name, member in members.items()}
    return Checkpoint(shapes, lambda name: _read_member(path, members[name]), str(path), dtypes=dtypes)


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    with archive.open(info) as file:
        head = file.read(12)
        if head[:6] != b"\x93NUMPY" or head[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
            raise ValueError("does not begin as an .npy does")
        length_bytes = 2 if head[6] == 1 else 4
        length = int.from_bytes(head[8 : 8 + length_bytes], "little")
        if length > _MAX_NPY_HEADER:
            raise ValueError(f"has a header of {length} bytes")
        head += file.read(max(0, 8 + length_bytes + length - len(head)))
    text = io.BytesIO(head)
    np.lib.format.read_magic(text)
    # versions 2 and 3 differ in the header's text encoding alone
    parse = np.lib.format.read_array_header_1_0 if head[6] == 1 else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings(action="ignore"):
            shape, fortran_order, dtype = parse(text)
    except Exception as error:  # the header is parsed as Python's literals: tokens, syntax and types can all be wrong
        raise ValueError(f"has a broken header: {one_line(error)}") from error
    if dtype.hasobject:
        raise ValueError("holds Python objects")
    if dtype == np.dtype("V2"):
        dtype = np.dtype(ml_dtypes.bfloat16)
    elif dtype.kind not in "biufc" or dtype.subdtype or dtype.itemsize > 16:
        raise ValueError(f"holds {one_line(dtype)[:60]}, no numbers")
    if len(shape) > 8 or not all(type(side) is int and 0 <= side < 1 << 63 for side in shape):
        raise ValueError(f"claims the shape {one_line(shape)[:60]}")
    size = 8 + length_bytes + length + math.prod(shape) * dtype.itemsize
    if size != info.file_size:
        raise ValueError(f"should have {size} bytes and has {info.file_size}")
    return _Member(info, shape, dtype, fortran_order, 8 + length_bytes + length, _data_start(archive, info))


def _read_member(path: Path, member: _Member) -> np.ndarray:
    if 0 in member.shape:
        return np.empty(member.shape, member.dtype)
    if member.info.compress_type == zipfile.ZIP_STORED:
        data = np.memmap(path, np.uint8, "r", member.offset + member.header_bytes, (member.nbytes,))
    else:
        data = np.empty(member.nbytes, np.uint8)
        with open_zip(path) as archive, archive.open(member.info) as file:
            file.read(member.header_bytes)
            filled = 0
            while filled < len(data) and (chunk := file.read(min(1 << 20, len(data) - filled))):
                data[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
                filled += len(chunk)
            if filled != len(data) or file.read(1):
                raise zipfile.BadZipFile(f"{member.info.filename} does not unpack to the size it claims")
    array = data.view(member.dtype).reshape(member.shape, order="F" if member.fortran_order else "C")
    return array if member.dtype.isnative else array.astype(member.dtype.newbyteorder("="))


def _data_start(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Returns the offset of a member's data: its local header has lengths of its own."""
    file: Any = archive.fp
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise ValueError("is not where the table of contents has it")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    stored = info.compress_type == zipfile.ZIP_STORED
    if (stored and info.compress_size != info.file_size) or start + info.compress_size > file.seek(0, os.SEEK_END):
        raise ValueError("ends after the file")
    return start


def write_npz(path: str, tensors: Mapping[str, np.ndarray], _config: Mapping[str, object]) -> None:
    """Writes the tensors alone; bfloat16 as raw two-byte items (V2)."""
    with open(path, "wb") as file:
        np.savez(file, **tensors)  # pyright: ignore[reportArgumentType]
