"""Reads and writes weights of every kind this library knows. Never runs code that a file holds.

Tensors are read one at a time, so that loading a model needs little more memory than the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.convert.adapter import Opened, is_adapter, merged, open_adapter
from vit_flax.convert.checkpoint import Checkpoint, one_line
from vit_flax.convert.distributed_folder import TABLE, read_distributed
from vit_flax.convert.folder import HUB, WEIGHT_NAMES, download, find_weights, read_shards, with_config
from vit_flax.convert.msgpack_file import is_msgpack, read_msgpack, write_msgpack
from vit_flax.convert.npz_file import open_zip, read_npz, write_npz
from vit_flax.convert.orbax_folder import SUFFIX as ORBAX
from vit_flax.convert.orbax_folder import find_orbax, read_orbax, write_orbax
from vit_flax.convert.renaming import same_tensor
from vit_flax.convert.rules import ConversionError
from vit_flax.convert.safetensors_file import read_safetensors, write_safetensors
from vit_flax.convert.torch_file import read_torch_legacy, read_torch_zip, write_torch


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a weights file, a folder with one, or hf://owner/name[@revision]; a config.json beside it is read too.

    The kind of file is told by its first bytes, not by its name.

    Raises:
        ConversionError: nothing there, or nothing that can be read safely; one line that says why.
    """
    address = str(path)
    path = Path(path)
    try:
        if address.startswith(HUB):
            path = download(address)
        elif path.is_dir():
            if (special := _read_special(path)) is not None:
                return special
            path = find_weights(path)
        if not path.is_file():
            raise ConversionError(f"{address}: no such file or folder{_repository_hint(address)}")
        if path.name.endswith(".index.json"):
            checkpoint = read_shards(path, _read_file)
        else:
            checkpoint = _read_file(path)
        return dataclasses.replace(with_config(checkpoint, path.parent), path=path)
    except (OSError, ValueError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{one_line(path)}: cannot be read: {one_line(error)}") from error


def _repository_hint(address: str) -> str:
    """Returns what to type for owner/name, as the hub names its repositories; nothing where it looks like a file's."""
    if page := re.match(r"https?://(?:www\.)?huggingface\.co/([\w-][\w.-]*/[\w-][\w.-]*)", address):
        return f"; did you mean {HUB}{page[1]}?"
    if re.match(r"\w+://", address):
        return ": download it first"
    owner, slash, name = address.partition("/")
    if not (slash and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", address)):
        return ""
    return "" if Path(owner).exists() or Path(name).suffix in _WRITERS else f"; did you mean {HUB}{address}?"


def _read_special(folder: Path) -> Checkpoint | None:
    """Opens a folder that is a checkpoint as a whole (an adapter, Orbax, DCP); None for any other."""
    distributed = [folder, *sorted(folder.glob("pytorch_model_fsdp_*"))]
    weights = any((folder / name).is_file() for name in WEIGHT_NAMES)
    for place in () if weights else distributed:
        if (place / TABLE).is_file():
            return dataclasses.replace(with_config(read_distributed(place), folder), path=place)
    if is_adapter(folder):
        return merged(read_adapter(folder), same_tensor)
    if weights:
        return None
    for name in ("best", "final"):  # of a training run of this library, as its checkpoints/ are
        if (folder / name / WEIGHT_NAMES[0]).is_file():
            note = f"took the run's {name}/" + ("; its last weights are in final/" if name == "best" else "")
            found = read_checkpoint(folder / name)
            return dataclasses.replace(found, notes=(*found.notes, note))
    for place in (folder, folder / "checkpoints"):
        if place.is_dir() and (orbax := find_orbax(place)) is not None:
            return dataclasses.replace(with_config(read_orbax(orbax), folder), path=orbax)
    return None


def read_adapter(folder: Path) -> Opened:
    """Opens a folder with a LoRA adapter, and the base in it or that its config names.

    Raises:
        ConversionError: it is no such folder, or one of the two cannot be read.
    """
    if not is_adapter(folder):
        raise ConversionError(f"{folder}: holds no adapter (adapter_config.json)")
    weights = any((folder / name).is_file() for name in WEIGHT_NAMES)
    own = read_checkpoint(find_weights(folder)) if weights else None
    return open_adapter(folder, own, _read_file, read_checkpoint)


# leading bytes of other files, in lower case
_OTHERS = {
    b"\x89png": "an image (PNG)", b"\xff\xd8\xff": "an image (JPEG)", b"gif8": "an image (GIF)",
    b"\x89hdf": "an HDF5 file (Keras; read it with h5py and give the arrays to from_state_dict)",
    b"gguf": "a GGUF file", b"<!doctype": "a page of the web: the download failed",
    b"<html": "a page of the web: the download failed", b"{": "text (JSON)", b"%pdf": "a PDF",
    b"\x1f\x8b": "packed with gzip: unpack it", b"\x93numpy": "a single array (.npy): several, by name, make an .npz",
}  # fmt: skip


def _read_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise ConversionError(f"{path}: is empty")
    if head[:2] == b"PK":
        return _read_zip(path)
    if head[8:9] == b"{":
        return read_safetensors(path)
    if head[:1] == b"\x80":
        return read_torch_legacy(path)
    for start, kind in _OTHERS.items():
        if head.lstrip().lower().startswith(start):
            raise ConversionError(f"{path}: is {kind}, no file of weights that is read here")
    if is_msgpack(head):
        return read_msgpack(path)
    if head.startswith(b"version https://git-lfs"):
        raise ConversionError(f"{path}: is Git LFS's pointer to the weights, not the weights: run git lfs pull")
    raise ConversionError(f"{path}: is neither safetensors, a PyTorch file, .npz nor .msgpack")


def _read_zip(path: Path) -> Checkpoint:
    with open_zip(path) as archive:
        arrays = any(name.endswith(".npy") for name in archive.namelist())
    return read_npz(path) if arrays else read_torch_zip(path)


Writer = Callable[[str, Mapping[str, np.ndarray], Mapping[str, object]], None]
_WRITERS: dict[str, Writer] = {
    ".npz": write_npz,
    ".msgpack": write_msgpack,
    ".pth": write_torch,
    ".pt": write_torch,
    ".bin": write_torch,
}


def write_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, object],
    config_file: Mapping[str, object] | None = None,
    beside: Mapping[str, Mapping[str, object]] | None = None,
    preprocessing: Mapping[str, object] | None = None,
    copies: Mapping[str, Path] | None = None,
) -> None:
    """Writes tensors to a .safetensors, .npz, .pth, .pt, .bin or .msgpack file, or a folder (.orbax, or no suffix).

    What is written appears whole or not at all. The config goes into the safetensors file's metadata; a folder
    gets a config.json besides, which holds `config_file` where that is given (another library's config), and the JSON
    files of `beside` by their names. What tells how images are prepared, `preprocessing`, goes into a safetensors
    file's metadata as well, and beside a file of another kind as NAME.preprocessing.json. A folder gets `copies`,
    files by name.

    Raises:
        ConversionError: the suffix is unknown, there are copies for a single file, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix and path.suffix not in (".safetensors", ORBAX, *_WRITERS):
        suffixes = ", ".join((".safetensors", *_WRITERS, ORBAX))
        raise ConversionError(f"{path}: unknown suffix; use {suffixes}, or none for a folder")
    if copies and path.suffix not in ("", ORBAX):
        raise ConversionError(
            f"{path}: a single file holds no {', '.join(copies)}; write a folder: no suffix, or {ORBAX}"
        )
    try:
        if path.suffix == ORBAX:
            told = {} if preprocessing is None else {"preprocessing.json": preprocessing}
            write_orbax(path, tensors, {"config.json": config, **(beside or {}), **told}, copies or {})
        elif path.suffix:
            with _appearing_whole(path) as temporary:
                if path.suffix == ".safetensors":
                    write_safetensors(temporary, tensors, config, preprocessing)
                else:
                    _WRITERS[path.suffix](temporary, tensors, config)
            _write_json(preprocessing_beside(path), None if path.suffix == ".safetensors" else preprocessing)
        else:
            files = {"config.json": config if config_file is None else config_file, **(beside or {})}
            write_folder(path, tensors, config, files, copies=copies)
    except OSError as error:
        why = one_line(error) if path.absolute().parent.is_dir() else "its folder does not exist"
        raise ConversionError(f"{path}: cannot be written: {why}") from error


def preprocessing_beside(path: Path) -> Path:
    """Returns the path of the preprocessing file beside a weights file that cannot carry it."""
    return path.with_name(f"{path.stem}.preprocessing.json")


def _write_json(path: Path, values: Mapping[str, Any] | None) -> None:
    """Writes a JSON file; without values, removes one of earlier weights."""
    if values is None:
        path.unlink(missing_ok=True)
        return
    with _appearing_whole(path) as text:
        Path(text).write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def write_folder(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, object],
    files: Mapping[str, Mapping[str, object]],
    weights_name: str = WEIGHT_NAMES[0],
    copies: Mapping[str, Path] | None = None,
) -> None:
    """Writes a safetensors file with `config` in its metadata, JSON files and copies, all of them or none."""
    created = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with _appearing_whole(path / weights_name) as weights, contextlib.ExitStack() as texts:
            write_safetensors(weights, tensors, config)
            for name, values in files.items():
                text = texts.enter_context(_appearing_whole(path / name))
                Path(text).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
            for name, source in (copies or {}).items():
                shutil.copyfile(source, texts.enter_context(_appearing_whole(path / name)))
    except BaseException:
        if created:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _appearing_whole(path: Path) -> Iterator[str]:
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield str(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
