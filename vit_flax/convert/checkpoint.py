"""A checkpoint as named tensors that are read lazily, one at a time, whatever the file format."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vit_flax.convert.rules import ConversionError

# More than any ViT has, with optimiser state and all; files beyond are refused before they cost memory or time.
MAX_TENSORS = 50_000
_MAX_VALUES = 500_000  # leaves, tensors or not
_MAX_DEPTH = 16  # levels of nested mappings
_MAX_NAME = 500
_MAX_AXES = 8
_MAX_SIDE = 1 << 40


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Named tensors, each read on demand, with the config found beside them.

    Nested mappings are flattened: {'model': {'norm.weight': a}} holds 'model/norm.weight', so that taking off a wrapper
    is taking a prefix off the names.
    """

    shapes: Mapping[str, tuple[int, ...]]
    reader: Callable[[str], np.ndarray]
    source: str = "memory"  # its name in messages
    config: Mapping[str, object] | None = None  # as found: ours, Hugging Face's or timm's
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)  # names of non-tensors, with their type
    preprocessing: Mapping[str, object] | None = None  # preprocessing, where the weights carry it
    path: Path | None = None  # of the file, or of the index of several: other files may lie beside it
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # NumPy's names, where known before reading
    notes: tuple[str, ...] = ()  # for whoever loads it: what was left out, cast, applied

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor as a NumPy array.

        Raises:
            ConversionError: the file cannot be read any more, or is broken just there.
        """
        try:
            return self.reader(name)
        except OSError as error:
            raise ConversionError(f"{self.source}: {name} cannot be read: {one_line(error)}") from error

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """Returns the same tensors under other names; `names` maps each present name to its new one."""
        back = {new: old for old, new in names.items()}
        shapes = {new: self.shapes[old] for old, new in names.items()}
        dtypes = {new: self.dtypes[old] for old, new in names.items() if old in self.dtypes}
        return dataclasses.replace(self, shapes=shapes, dtypes=dtypes, reader=lambda name: self.reader(back[name]))


def from_mapping(tensors: Mapping[str, object], source: str = "memory") -> Checkpoint:
    """Wraps a state dict of torch or NumPy arrays, nested or flat.

    A training checkpoint holds more than tensors: its numbers, texts and other values are left out, and named in
    `skipped`.

    Raises:
        ConversionError: there is no array at all, or one without plain storage (sparse, quantised, meta ...), or a
            mapping without others inside, so no training checkpoint, holds what is no array.
    """
    if not isinstance(tensors, Mapping):
        hint = "; pass its state_dict()" if hasattr(tensors, "state_dict") else ""
        raise ConversionError(f"expected a mapping of names to arrays, got {type(tensors).__name__}{hint}")
    arrays: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    faults: list[str] = []
    for name, value in _leaves_of(tensors, source):
        if name in arrays or name in skipped:
            faults.append(f"{name} (twice)")
        elif not _is_array(value):
            skipped[name] = type(value).__name__
        elif fault := _fault(value):
            faults.append(f"{name} ({fault})")
        else:
            arrays[name] = value
    if arrays and not any(isinstance(value, Mapping) for value in tensors.values()):
        faults += [f"{name} ({kind})" for name, kind in skipped.items()]
    if faults:
        raise ConversionError(f"{source}: not plain arrays: {', '.join(faults[:20])}")
    shapes = {name: tuple(value.shape) for name, value in arrays.items()}
    if not shapes:
        found = ", ".join(f"{name} ({kind})" for name, kind in list(skipped.items())[:5])
        raise ConversionError(f"{source}: holds no tensors{': only ' + found if found else ''}")
    check_listing(source, shapes)
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in arrays.items()}
    return Checkpoint(shapes, lambda name: to_numpy(name, arrays[name]), source, skipped=skipped, dtypes=dtypes)


def _leaves_of(tensors: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    try:
        yield from leaves(tensors)
    except ConversionError as error:
        raise ConversionError(f"{source}: holds {error}") from error


def leaves(value: object) -> Iterator[tuple[str, Any]]:
    """Walks mappings in mappings (and in lists), yielding each other value with its name, joined by slashes.

    Raises:
        ConversionError: they are nested without end, hold more than any checkpoint does, or have odd keys.
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    seen = 0
    while waiting:
        path, value = waiting.pop()
        # a cyclic mapping would recurse for ever, and one that many share would take exponential time
        seen += len(value) if isinstance(value, Mapping | list | tuple) else 0
        if seen > _MAX_VALUES or len(path) > _MAX_DEPTH:
            raise ConversionError(f"more than {_MAX_VALUES} values, or some nested more than {_MAX_DEPTH} deep")
        if isinstance(value, Mapping):
            inner = [((*path, _key(key, i)), item) for i, (key, item) in enumerate(value.items())]
        elif isinstance(value, list | tuple) and any(
            isinstance(item, Mapping | list | tuple) or _is_array(item) for item in value
        ):
            inner = [((*path, str(i)), item) for i, item in enumerate(value)]
        else:
            yield "/".join(path), value
            continue
        waiting.extend(reversed(inner))


def _key(key: Any, place: int) -> str:
    # keys that are no names are not parameters': settings have None, numbers, pairs and classes
    if isinstance(key, tuple) and key and all(isinstance(level, str) for level in key):
        key = "/".join(key)  # flax.traverse_util.flatten_dict without a separator
    text = str(key) if isinstance(key, str | int) else f"<{type(key).__name__} {place}>"
    if len(text) > _MAX_NAME or not text.isprintable():
        raise ConversionError(f"a key {text[:60]!r}, no name of a parameter")
    return text


def _is_array(value: Any) -> bool:
    # asking a nested tensor of torch for its shape is an error
    return hasattr(value, "dtype") and (hasattr(value, "detach") or hasattr(value, "shape"))


def _fault(value: Any) -> str | None:
    """Returns the reason why an array cannot be read, or None."""
    layout = str(getattr(value, "layout", "torch.strided"))
    if layout != "torch.strided":
        return layout.removeprefix("torch.")
    for attribute, fault in (("is_quantized", "quantised"), ("is_nested", "nested"), ("is_meta", "meta, no values")):
        if getattr(value, attribute, False):
            return fault
    dtype = str(value.dtype)
    if not hasattr(value, "detach"):
        try:
            kind = np.dtype(value.dtype)
        except TypeError:
            return f"of type {dtype}"
        return None if kind.kind in "biufc" or kind == ml_dtypes.bfloat16 else f"of type {dtype}"
    if "float8" in dtype or "float4" in dtype or "bits" in dtype or "complex32" in dtype:
        return f"of type {dtype}"
    return None


def to_numpy(name: str, value: object) -> np.ndarray:
    """Converts an array of torch or NumPy to NumPy, without a copy where it lies in host memory."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor: Any = value
    try:
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
        if str(tensor.dtype) == "torch.bfloat16":  # NumPy has no such dtype: reinterpret the bits
            return tensor.contiguous().view(sys.modules["torch"].uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:  # tensor subclasses of other libraries
        raise ConversionError(f"{name}: torch cannot hand it to NumPy: {one_line(error)}") from error


def check_listing(source: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses unprintable names, and more tensors or axes than any model has.

    Raises:
        ConversionError: one line with the first such tensor.
    """
    check_names(source, shapes)
    for name, shape in shapes.items():
        if len(shape) > _MAX_AXES or math.prod(max(side, 1) for side in shape) > _MAX_SIDE:
            raise ConversionError(f"{source}: {name} claims the shape {str(tuple(shape))[:100]}")


def check_names(source: str, names: Collection[str]) -> None:
    """Refuses unprintable names, before any message prints them, and more of them than any model has.

    Raises:
        ConversionError: one line with the first such name.
    """
    if len(names) > MAX_TENSORS:
        raise ConversionError(f"{source}: holds {len(names)} tensors, more than {MAX_TENSORS}")
    for name in names:
        if len(name) > _MAX_NAME or not name.isprintable():
            raise ConversionError(f"{source}: a tensor has the name {name[:60]!r}, no name of a parameter")


def one_line(error: object) -> str:
    """Returns an error's message, however long and broken, as one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
