"""LoRA adapters of peft: read together with the model they belong to, and merged into it: W + B A alpha / r.

`vit_flax.lora` reads them to be trained on, and writes them.

Reference: peft.tuners.lora, merge_and_unload.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.convert.checkpoint import Checkpoint
from vit_flax.convert.folder import HUB, read_json
from vit_flax.convert.rules import ConversionError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every name in an adapter
IMAGES = "preprocessing.json"  # preprocessing and class names, where they are the adapter's own
_LABELS = {"id2label", "label2id", "num_labels", "labels", "label_names", "label_descriptions"}
_WEIGHTS = (WEIGHTS, "adapter_model.bin")
# Fields of the config that change nothing once the adapter is trained; every other is refused unless it is empty.
_READ = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base's own weights as well
_PART = re.compile(r"(.+)\.lora_(A|B)(?:\.default)?\.weight")
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save\.default)(?=\.)")
_WAY_OUT = "merge it with peft (model.merge_and_unload()) and save the model"
_SHOWN = 5

Reader = Callable[[str], Checkpoint]
# (names of the base's tensors, name that the adapter has) -> the base's name of the same, or None
Renamer = Callable[[Mapping[str, object], str], str | None]


def is_adapter(folder: Path) -> bool:
    """Returns whether a folder holds an adapter, with or without the model it belongs to."""
    return (folder / CONFIG).is_file()


@dataclasses.dataclass(frozen=True)
class Opened:
    """An adapter's folder: its config, the model it belongs to, and its own tensors."""

    folder: Path
    config: Mapping[str, Any]
    base: Checkpoint
    tensors: Checkpoint


@dataclasses.dataclass(frozen=True)
class Matched:
    """Which tensors of an adapter belong to which of its base."""

    pairs: Mapping[str, Mapping[str, str]]  # base tensor -> {'A': adapter tensor, 'B': ...}
    modules: Mapping[str, str]  # base tensor -> the module's name, which patterns match
    replaced: Mapping[str, str]  # base tensor -> adapter tensor


def open_adapter(
    folder: Path, own: Checkpoint | None, read_file: Callable[[Path], Checkpoint], read_any: Reader
) -> Opened:
    """Opens an adapter's folder.

    Args:
        folder: with adapter_config.json.
        own: the weights in the folder that the adapter belongs to, where it has some.
        read_file: opens one file.
        read_any: opens the base by its path or address.

    Raises:
        ConversionError: the adapter is of another kind, or its base is not there.
    """
    config = read_json(folder / CONFIG)
    _check(folder, config)
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ConversionError(f"{folder}: has {CONFIG} and no {_WEIGHTS[0]}")
    adapter = read_file(path)
    return Opened(folder, config, own if own is not None else _read_base(folder, config, read_any), adapter)


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ConversionError(f"{folder}: is an adapter of type {str(kind)[:30]}; only LORA is read: {_WAY_OUT}")
    odd = [f"{name}={str(value)[:40]}" for name, value in config.items() if name not in _READ and value]
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"(\w|\.|\\\.|[\^$-])+", key) for key in patterns):
        odd.append(f"alpha_pattern={str(patterns)[:40]}")
        patterns = {}
    for alpha in (config.get("lora_alpha", 8), *patterns.values()):
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            odd.append(f"an alpha of {str(alpha)[:40]}")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        odd.append(f"init_lora_weights={str(config['init_lora_weights'])[:40]}")
    if odd:
        told = ", ".join(odd[:_SHOWN])
        raise ConversionError(f"{folder}: is a LoRA adapter with {told}, which is not read: {_WAY_OUT}")


def _read_base(folder: Path, config: Mapping[str, Any], read_any: Reader) -> Checkpoint:
    name = config.get("base_model_name_or_path")
    way_out = (
        f"put the base's config.json and weights into {folder}, or its path into {CONFIG}: base_model_name_or_path"
    )
    if not isinstance(name, str) or not name:
        raise ConversionError(f"{folder}: is a LoRA adapter that does not name its base; {way_out}")
    places = [Path(name)] if Path(name).is_absolute() else [folder / name, Path(name)]
    place = next((str(path) for path in places if path.exists()), None)
    if place is None and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        revision = config.get("revision")
        place = f"{HUB}{name}" + (f"@{revision}" if isinstance(revision, str) and revision else "")
    try:
        if place is None:
            raise ConversionError("no such file or folder")
        if is_adapter(Path(place)):
            raise ConversionError("it is an adapter itself")
        return read_any(place)
    except ConversionError as error:
        what = f"{folder}: is a LoRA adapter of {name[:200]}, which cannot be read"
        raise ConversionError(f"{what} ({error}); {way_out}") from error


def match_adapter(opened: Opened, rename: Renamer) -> Matched:
    """Finds the tensor of the base for every one of the adapter.

    `rename` translates names, since adapters have those of the model in memory.

    Raises:
        ConversionError: the two do not fit; the message names what has no place.
    """
    config, base, adapter = opened.config, opened.base, opened.tensors
    pairs: dict[str, dict[str, str]] = {}
    modules: dict[str, str] = {}
    replaced: dict[str, str] = {}
    faults = []
    for name in adapter.shapes:
        inner = name.removeprefix(PREFIX)
        found = _PART.fullmatch(inner)
        module = _WRAPPED.sub("", found[1] if found else inner)
        if "lora_" in module or re.search(r"\.(magnitude|hada|ia3)_", module):
            faults.append(name)
            continue
        wanted = f"{module}.weight" if found else module
        target = rename(base.shapes, wanted) or (None if found else wanted)
        if target is None:
            faults.append(name)
        elif found:
            pairs.setdefault(target, {})[found[2]] = name
            modules[target] = module
        else:
            replaced[target] = name
    faults += [part["A" if "A" in part else "B"] for part in pairs.values() if len(part) != 2]
    shapes = {**base.shapes, **{target: adapter.shapes[name] for target, name in replaced.items()}}
    for target, part in pairs.items():
        if len(part) == 2 and _merged_shape(config, adapter, part) != shapes[target]:
            faults.append(f"{part['B']} (for {target} of shape {shapes[target]})")
    if faults:
        told = ", ".join(faults[:_SHOWN]) + (" ..." if len(faults) > _SHOWN else "")
        raise ConversionError(
            f"{opened.folder}: the adapter does not fit {base.source}: no place for {told}; {_WAY_OUT}"
        )
    return Matched(pairs, modules, replaced)


def with_replaced(opened: Opened, matched: Matched) -> Checkpoint:
    """Returns the base with the tensors that the adapter holds whole."""
    base, adapter, replaced = opened.base, opened.tensors, matched.replaced

    def read(name: str) -> np.ndarray:
        return adapter.read(replaced[name]) if name in replaced else base.read(name)

    shapes = {**base.shapes, **{target: adapter.shapes[name] for target, name in replaced.items()}}
    dtypes = {**base.dtypes, **{target: adapter.dtypes.get(name, "float32") for target, name in replaced.items()}}
    classes = {
        (base.shapes[target][0], shapes[target][0])
        for target in replaced
        if target in base.shapes and base.shapes[target] != shapes[target] and shapes[target]
    }
    config = base.config if base.config is None or not classes else _with_classes(base.config, dict(classes))
    images = opened.folder / IMAGES
    return dataclasses.replace(
        base,
        shapes=shapes,
        reader=read,
        dtypes=dtypes,
        source=str(opened.folder),
        config=config,
        preprocessing=read_json(images) if images.is_file() else base.preprocessing,
    )


def _with_classes(config: Mapping[str, Any], counts: Mapping[int, int]) -> dict[str, Any]:
    """Returns a base's config for another number of classes, whose names it does not know."""
    told = {name: value for name, value in config.items() if name not in _LABELS}
    if told.get("num_classes") in counts:
        told["num_classes"] = counts[told["num_classes"]]
    inner = told.get("pretrained_cfg")
    return {**told, "pretrained_cfg": _with_classes(inner, counts)} if isinstance(inner, dict) else told


def merged(opened: Opened, rename: Renamer) -> Checkpoint:
    """Returns the base with the adapter in it; errors are those of `match_adapter`."""
    matched, config, adapter = match_adapter(opened, rename), opened.config, opened.tensors
    whole = with_replaced(opened, matched)

    def read(name: str) -> np.ndarray:
        array = whole.read(name)
        if name not in matched.pairs:
            return array
        down, up = (adapter.read(matched.pairs[name][part]) for part in "AB")
        change = _product(config, down, up) * scale_of(opened, matched.modules[name], down.shape[0])
        return (array + change.astype(array.dtype)).astype(array.dtype)

    note = f"applied the LoRA adapter in {opened.folder.name} to {len(matched.pairs)} tensors of {opened.base.source}"
    note += f" and took {len(matched.replaced)} of its own" if matched.replaced else ""
    return dataclasses.replace(whole, reader=read, notes=(*whole.notes, note))


def _merged_shape(config: Mapping[str, Any], adapter: Checkpoint, part: Mapping[str, str]) -> tuple[int, ...] | None:
    down, up = adapter.shapes[part["A"]], adapter.shapes[part["B"]]
    if len(down) != len(up) or len(down) not in (2, 4) or up[1] != down[0] or up[2:] != (1,) * len(up[2:]):
        return None
    shape = (up[0], *down[1:])
    return shape[::-1] if config.get("fan_in_fan_out") and len(shape) == 2 else shape


def _product(config: Mapping[str, Any], down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Returns the product B A in the base's axes; a convolution's B is 1 x 1."""
    wide = np.result_type(np.float32, down.dtype) if down.dtype.kind == "f" else np.dtype(np.float32)
    flat = up.reshape(up.shape[:2]).astype(wide) @ down.reshape(len(down), -1).astype(wide)
    product = flat.reshape(up.shape[0], *down.shape[1:])
    return product.T if config.get("fan_in_fan_out") and product.ndim == 2 else product


def scale_of(opened: Opened, module: str, rank: int) -> float:
    """Returns the scale of a module's low-rank product: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    config = opened.config
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), config.get("lora_alpha", 8)
    )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
