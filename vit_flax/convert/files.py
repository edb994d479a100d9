"""Reads and writes files of named tensors: safetensors, PyTorch's zip pickles, NumPy's .npz. Never runs their code.

Tensors are read one at a time, so that loading a model needs little more memory than the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pickletools
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vit_flax.convert.rules import ConversionError
from vit_flax.convert.wrappers import flatten, unwrap

CONFIG_KEY = "vit_flax_config"  # where our own files keep the config, in safetensors' metadata
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")  # what a folder is searched for, in this order

_SAFETENSORS_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "BF16": ml_dtypes.bfloat16,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Named tensors that are read when asked for, with the config found beside them."""

    shapes: Mapping[str, tuple[int, ...]]
    reader: Callable[[str], np.ndarray]
    source: str = "memory"  # what messages call it
    config: Mapping[str, Any] | None = None  # as found: ours, Hugging Face's or timm's

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor as a NumPy array."""
        return self.reader(name)

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """Returns the same tensors under other names; `names` maps each of today's to its new one."""
        back = {new: old for old, new in names.items()}
        shapes = {new: self.shapes[old] for old, new in names.items()}
        return dataclasses.replace(self, shapes=shapes, reader=lambda name: self.reader(back[name]))


def from_mapping(tensors: Mapping[str, Any], entry: str | None = None) -> Checkpoint:
    """Wraps named arrays, torch's or NumPy's, and takes off what training scripts put around a model's names.

    Args:
        tensors: names to arrays, or a training checkpoint with such a mapping inside.
        entry: which weights to take where it holds several, for example 'teacher'.

    Raises:
        ConversionError: a value is no array, or a torch tensor without plain storage (sparse, say); or there are
            several sets of weights and `entry` does not say which.
    """
    return unwrap(_from_mapping(tensors), entry)


def _from_mapping(tensors: Mapping[str, Any]) -> Checkpoint:
    if not isinstance(tensors, Mapping):
        raise ConversionError(f"expected a mapping of names to arrays, got {type(tensors).__name__}")
    tensors = flatten(tensors)
    bad = [str(k) for k, v in tensors.items() if not (isinstance(k, str) and hasattr(v, "shape"))]
    bad += [k for k, v in tensors.items() if str(getattr(v, "layout", "torch.strided")) != "torch.strided"]
    if bad:
        raise ConversionError(f"not plain arrays: {', '.join(bad[:20])}")
    return Checkpoint({k: tuple(v.shape) for k, v in tensors.items()}, lambda name: _to_numpy(tensors[name]))


def _to_numpy(value: Any) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":  # NumPy has no such type of its own: move the bits
        return value.contiguous().view(sys.modules["torch"].uint16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def read_checkpoint(path: str | os.PathLike[str], entry: str | None = None) -> Checkpoint:
    """Opens a weights file, or a folder with one and perhaps a config.json; `entry` as for `from_mapping`.

    The kind of file is told by its first bytes, not by its name.

    Raises:
        ConversionError: nothing there, or nothing that can be read safely; one line that says why.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return unwrap(_read_folder(path), entry)
        if not path.is_file():
            raise ConversionError(f"{path}: no such file or folder")
        return unwrap(_read_file(path), entry)
    except (OSError, EOFError) as error:
        raise ConversionError(f"{path}: cannot be read: {error}") from error


def _read_folder(path: Path) -> Checkpoint:
    for name in WEIGHT_NAMES:
        if (path / name).is_file():
            checkpoint = _read_file(path / name)
            if (path / "config.json").is_file():
                checkpoint = dataclasses.replace(checkpoint, config=_read_json(path / "config.json"))
            return checkpoint
    raise ConversionError(f"{path}: holds no weights (looked for {', '.join(WEIGHT_NAMES)})")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: holds no JSON object")
    return value


def _read_file(path: Path) -> Checkpoint:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    if size == 0:
        raise ConversionError(f"{path}: is empty")
    if head[:2] == b"PK":
        return _read_zip(path)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:1] == b"\x80":
        return _read_torch(path, _legacy_globals(path))
    raise ConversionError(f"{path}: is neither safetensors, a PyTorch file nor .npz")


def _read_safetensors(path: Path) -> Checkpoint:
    import safetensors

    try:  # the library checks the header: its size, the names, and that the tensors fill the file without overlap
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, UnicodeError, ValueError) as error:
        raise ConversionError(f"{path}: is no valid safetensors file: {error}") from error
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    unknown = sorted({entry["dtype"] for entry in header.values()} - set(_SAFETENSORS_DTYPES))
    if unknown:
        raise ConversionError(f"{path}: has tensors of a type this library does not read: {', '.join(unknown)}")

    def read(name: str) -> np.ndarray:
        entry = header[name]
        dtype, shape = _SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])
        if 0 in shape:
            return np.empty(shape, dtype)
        offset = 8 + header_bytes + entry["data_offsets"][0]
        flat = np.memmap(path, np.uint8, "r", offset, (entry["data_offsets"][1] - entry["data_offsets"][0],))
        return flat.view(dtype).reshape(shape)

    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    config = None
    if CONFIG_KEY in metadata:
        try:
            config = json.loads(metadata[CONFIG_KEY])
        except (ValueError, RecursionError) as error:
            raise ConversionError(f"{path}: its metadata {CONFIG_KEY!r} is no JSON: {error}") from error
        if not isinstance(config, dict):
            raise ConversionError(f"{path}: its metadata {CONFIG_KEY!r} is no JSON object")
    return Checkpoint(shapes, read, str(path), config)


_MAX_INFLATION = 100  # a deflated file larger than this many times itself is taken for a bomb
_MAX_SMALL = 1 << 20


def _read_zip(path: Path) -> Checkpoint:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            inflated = sum(info.file_size for info in infos)
            if inflated > max(_MAX_INFLATION * path.stat().st_size, _MAX_SMALL):
                raise ConversionError(f"{path}: claims to unpack to {inflated} bytes; refused")
            if any(name.endswith(".npy") for name in names):
                return _read_npz(path)
            pickles = [name for name in names if name.endswith("data.pkl")]
            if pickles:
                return _read_torch(path, _pickle_globals(archive.read(pickles[0])))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{path}: is a broken zip file: {error}") from error
    raise ConversionError(f"{path}: is a zip file without tensors")


def _read_npz(path: Path) -> Checkpoint:
    shapes, problems = {}, []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(file)
                header_bytes = file.tell()
            if dtype.hasobject:
                problems.append(f"{name} holds Python objects")
            elif math.prod(shape) * dtype.itemsize + header_bytes > info.file_size:
                problems.append(f"{name} is cut short")
            shapes[name] = shape
    if problems:
        raise ConversionError(f"{path}: {'; '.join(problems[:20])}; refused")

    def read(name: str) -> np.ndarray:
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[name]
        # bfloat16 is stored as two raw bytes
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array

    return Checkpoint(shapes, read, str(path))


# What a file of tensors may refer to. torch.load(weights_only=True) has the last word; this list is checked first
# because it needs no torch, and because it can name what is wrong.
_SAFE_MODULES = ("torch", "torch._utils", "torch._tensor", "torch.nn.parameter", "torch.storage", "torch.serialization")
_SAFE_GLOBALS = {"collections OrderedDict", "numpy dtype", "numpy.core.multiarray scalar", "_codecs encode"}


def _pickle_globals(data: bytes) -> list[str]:
    """Returns 'module name' for everything outside the list that a pickle refers to; runs nothing."""
    found, strings = [], []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST"):
            found.append(str(argument))
        elif opcode.name == "STACK_GLOBAL":
            found.append(" ".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return sorted({g for g in found if g not in _SAFE_GLOBALS and g.split(" ")[0] not in _SAFE_MODULES})


def _legacy_globals(path: Path) -> list[str]:
    # torch's format before 1.6: five pickles one after the other, then the storages
    found: list[str] = []
    with path.open("rb") as file:
        try:
            for _ in range(5):
                found += _pickle_globals(_one_pickle(file))
        except Exception as error:
            raise ConversionError(f"{path}: is a broken pickle: {error}") from error
    return sorted(set(found))


def _one_pickle(file: Any) -> bytes:
    start = file.tell()
    for _ in pickletools.genops(file):
        pass
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def _read_torch(path: Path, refused: list[str]) -> Checkpoint:
    if refused:
        names = ", ".join(name.replace(" ", ".") for name in refused[:5])
        raise ConversionError(f"{path}: a pickle that calls {names}; refused, since loading it would run code")
    try:
        import torch
    except ImportError as error:
        raise ConversionError(f"{path}: reading PyTorch files needs torch: pip install 'vit-linen[torch]'") from error
    try:
        try:
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises all kinds on a broken file
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{path}: torch cannot load it: {first}") from error
    if not isinstance(value, Mapping):
        raise ConversionError(f"{path}: holds a {type(value).__name__}, not named tensors")
    return dataclasses.replace(_from_mapping(value), source=str(path))


def write_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> None:
    """Writes tensors to `path`: a .safetensors, .npz, .pth, .pt or .bin file, or (no suffix) a folder.

    The file appears whole or not at all. The config goes into the safetensors file's metadata; beside other files it is
    written as config.json only in the case of a folder.

    Raises:
        ConversionError: the suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    writers = {".safetensors": _write_safetensors, ".npz": _write_npz, ".pth": _write_torch, ".pt": _write_torch}
    writers[".bin"] = _write_torch
    if path.suffix and path.suffix not in writers:
        raise ConversionError(f"{path}: unknown suffix; use {', '.join(writers)}, or none for a folder")
    try:
        if path.suffix:
            with _appearing_whole(path) as temporary:
                writers[path.suffix](temporary, tensors, config)
        else:
            path.mkdir(parents=True, exist_ok=True)
            with _appearing_whole(path / WEIGHT_NAMES[0]) as temporary:
                _write_safetensors(temporary, tensors, config)
            with _appearing_whole(path / "config.json") as temporary:
                Path(temporary).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise ConversionError(f"{path}: cannot be written: {error}") from error


@contextlib.contextmanager
def _appearing_whole(path: Path) -> Iterator[str]:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _write_safetensors(path: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    save_file(dict(tensors), path, {"format": "pt", CONFIG_KEY: json.dumps(config)})


def _write_npz(path: str, tensors: Mapping[str, np.ndarray], _config: Mapping[str, Any]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **tensors)  # pyright: ignore[reportArgumentType]


def _write_torch(path: str, tensors: Mapping[str, np.ndarray], _config: Mapping[str, Any]) -> None:
    try:
        import torch
    except ImportError as error:
        raise ConversionError("writing PyTorch files needs torch: pip install 'vit-linen[torch]'") from error

    def to_torch(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    torch.save({name: to_torch(array) for name, array in tensors.items()}, path)
