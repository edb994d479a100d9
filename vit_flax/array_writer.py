"""Arrays on disk that grow row by row, for results larger than memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

COPIED = 1 << 24  # bytes per chunk


class ArrayWriter:
    """Writes arrays to an .npz file, or to a new folder of .npy files, which `np.load(mmap_mode="r")` can map.

    Rows are written as they come, to a temporary folder beside the target, which is replaced when the context ends
    without an error and left as it was otherwise.

        with ArrayWriter("features.npz") as writer:
            writer.append({"features": batch})

    Raises:
        ValueError: the target's parent does not exist, its suffix is another, or it is a folder with files.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        target = Path(target)
        if not target.absolute().parent.is_dir():
            raise ValueError(f"{target}: its folder does not exist")
        if target.suffix not in ("", ".npz"):
            raise ValueError(f"{target}: must end in .npz, or be the name of a new folder")
        if target.suffix and target.is_dir():
            raise ValueError(f"{target}: is a folder")
        if not target.suffix and target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise ValueError(f"{target}: is there already; a new folder is written")
        self.target = target
        self.shapes: dict[str, tuple[int, ...]] = {}  # so far
        self._files: dict[str, BinaryIO] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._folder = Path()

    def __enter__(self) -> Self:
        """Makes the temporary folder."""
        absolute = self.target.absolute()
        self._folder = Path(tempfile.mkdtemp(prefix=f".{absolute.name}-", dir=absolute.parent))
        return self

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Appends rows along the first axis to the arrays of these names; a new name starts an array.

        Raises:
            ValueError: the rows are of another shape or dtype than those before.
        """
        for name, array in rows.items():
            if name not in self._files:
                self._files[name] = (self._folder / f"{name}.npy").open("w+b")
                self.shapes[name], self._dtypes[name] = (0, *array.shape[1:]), array.dtype
                self._write_header(name)
            if array.shape[1:] != self.shapes[name][1:] or array.dtype != self._dtypes[name]:
                raise ValueError(
                    f"{name}: rows of {array.shape[1:]} {array.dtype} after rows of {self.shapes[name][1:]} "
                    f"{self._dtypes[name]} do not fit in one array"
                )
            self._files[name].write(np.ascontiguousarray(array).data)
            self.shapes[name] = (self.shapes[name][0] + len(array), *self.shapes[name][1:])

    def _write_header(self, name: str) -> int:
        """Writes the header at the file's start and returns its end; NumPy leaves room for more rows."""
        file, dtype = self._files[name], self._dtypes[name]
        file.seek(0)
        told = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": self.shapes[name]}
        np.lib.format.write_array_header_2_0(file, told)
        return file.tell()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Moves the files into place, or removes them after an error."""
        try:
            for name, file in self._files.items():
                size = file.seek(0, os.SEEK_END)
                if kind is None:
                    count = self.shapes[name][0] * int(np.prod(self.shapes[name][1:])) * self._dtypes[name].itemsize
                    assert self._write_header(name) + count == size
                file.close()
            if kind is None:
                self._finish()
        finally:
            for file in self._files.values():
                file.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        if not self.target.suffix:
            umask = os.umask(0)
            os.umask(umask)
            self._folder.chmod(0o777 & ~umask)  # temporary folders are their owner's alone
            self._folder.rename(self.target)
            return
        whole = self._folder / "whole.zip"
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
            for name in self._files:
                path = self._folder / f"{name}.npy"
                with path.open("rb") as source, archive.open(path.name, "w", force_zip64=True) as copy:
                    shutil.copyfileobj(source, copy, COPIED)
                path.unlink()  # now, so that the disk holds little more than the arrays once
        whole.replace(self.target)
