"""Folders of Orbax: a tree of arrays, and checkpoints of this library's training runs. Read a tensor at a time."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.convert.checkpoint import Checkpoint, check_listing, one_line
from vit_flax.convert.folder import read_json
from vit_flax.convert.msgpack_file import nested
from vit_flax.convert.rules import ConversionError

_TABLE = "_METADATA"  # of a tree of arrays
# What a run's state has besides its parameters, by the first level of its names.
_WEIGHTS = ("params", "ema")
SUFFIX = ".orbax"  # of a folder that `write_orbax` makes
# Fields of a run's data config that are those of `Preprocessing`.
PREPROCESSING_FIELDS = (
    "mean", "std", "crop_pct", "crop_mode", "interpolation", "resize_size", "resizer", "fill", "exif", "pixel_range",
)  # fmt: skip
_TREE = "params"  # the tree of arrays in it


def find_orbax(folder: Path) -> Path | None:
    """Returns the path of the array tree under a folder: itself, an item of it, or its newest step."""
    for place in (folder, *(folder / name for name in ("state", "default", "params"))):
        if (place / _TABLE).is_file():
            return place
    steps = [path for path in folder.iterdir() if re.fullmatch(r"\d+", path.name) and path.is_dir()]
    for step in sorted(steps, key=lambda path: int(path.name), reverse=True):
        # of ours, those without a manifest were not finished
        if (step / "run.json").is_file() and not (step / "manifest.json").is_file():
            continue
        if (place := find_orbax(step)) is not None:
            return place
    return None


def read_orbax(folder: Path) -> Checkpoint:
    """Opens a tree of arrays that Orbax wrote; of a run's state only the parameters and their average.

    Raises:
        ConversionError: Orbax is not installed or cannot read it.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ConversionError(f"{folder}: Orbax's folders need it: pip install 'vit-linen[train]'") from error
    reader = ocp.PyTreeCheckpointer()
    try:
        found = reader.metadata(folder.absolute())
        tree = getattr(found, "item_metadata", found)
        tree = getattr(tree, "tree", tree)
        leaves = dict(_leaves(tree))
    except Exception as error:  # Orbax raises all kinds
        raise ConversionError(f"{folder}: Orbax cannot read it: {one_line(error)}") from error
    names = {"/".join(path): path for path in leaves}
    state = {name for name in names if re.split(r"[./]", name)[0] in _WEIGHTS}
    skipped = {name: "state of training" for name in names if state and name not in state}
    kept = {name: path for name, path in names.items() if name not in skipped and hasattr(leaves[path], "shape")}
    shapes = {name: tuple(leaves[path].shape) for name, path in kept.items()}
    check_listing(str(folder), shapes)
    if not shapes:
        raise ConversionError(f"{folder}: holds no arrays")

    def read(name: str) -> np.ndarray:
        item: Any = leaves[kept[name]]
        arguments: Any = ocp.RestoreArgs(restore_type=np.ndarray)
        for level in reversed(kept[name]):
            item, arguments = {level: item}, {level: arguments}
        try:
            restore = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
            value = reader.restore(folder.absolute(), args=restore)
        except Exception as error:
            raise ConversionError(f"{folder}: {name}: Orbax cannot read it: {one_line(error)}") from error
        for level in kept[name]:
            value = value[level]
        return np.asarray(value)

    dtypes = {name: np.dtype(leaves[path].dtype).name for name, path in kept.items()}
    config, preprocessing = _run_config(folder.parent)
    return Checkpoint(shapes, read, str(folder), config, skipped=skipped, dtypes=dtypes, preprocessing=preprocessing)


def write_orbax(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    files: Mapping[str, Mapping[str, object]],
    copies: Mapping[str, Path],
) -> None:
    """Writes a folder: `params/`, a tree of arrays by the slashes in their names, and JSON files and copies beside it.

    It appears whole or not at all, in place of one that stood there.

    Raises:
        ConversionError: Orbax is not installed or cannot write it, or something else stands there.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ConversionError(f"{folder}: Orbax's folders need it: pip install 'vit-linen[train]'") from error
    if folder.exists() and not (folder / _TREE / _TABLE).is_file():
        raise ConversionError(f"{folder}: is there, and no folder of Orbax with {_TREE}/ in it; name another")
    temporary, old = (folder.parent / f".{folder.name}.{secrets.token_hex(8)}" for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        try:
            ocp.PyTreeCheckpointer().save(temporary.absolute() / _TREE, nested(tensors))
        except Exception as error:  # Orbax raises all kinds
            raise ConversionError(f"{folder}: Orbax cannot write it: {one_line(error)}") from error
        for name, values in files.items():
            (temporary / name).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        for name, source in copies.items():
            shutil.copyfile(source, temporary / name)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        for place in (temporary, old):
            shutil.rmtree(place, ignore_errors=True)


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Any:
    if isinstance(tree, Mapping):
        for name, item in tree.items():
            yield from _leaves(item, (*path, str(name)))
    elif isinstance(tree, list | tuple):
        for i, item in enumerate(tree):
            yield from _leaves(item, (*path, str(i)))
    else:
        yield path, tree


def _run_config(step: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Returns the model's config and the preprocessing that a run of this library wrote beside its state.

    Class names stand in what the run has exported by then, and not in its config.
    """
    if not (step / "run.json").is_file():
        return None, None
    config = read_json(step / "run.json").get("config")
    model, data = (config.get(part) for part in ("model", "data")) if isinstance(config, dict) else (None, None)
    if not (isinstance(model, dict) and "model_config" in model):
        return None, None
    for name in ("best", "final"):
        if (file := step.parent.parent / name / "preprocessing.json").is_file():
            return model, read_json(file)
    tower = model.get("image", model)
    if not (isinstance(data, dict) and isinstance(tower, dict)):
        return model, None
    prepared = {name: data[name] for name in PREPROCESSING_FIELDS if name in data}
    return model, {"image_size": tower.get("image_size"), **prepared} if prepared else None
