"""Adapters in peft's format: a folder of adapter_config.json and adapter_model.safetensors.

A fused layer here may be several layers in torch, and the other way round: the parts of one adapter then share A, and
adapters of the parts of one layer become one adapter whose rank is the sum of theirs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from vit_flax.config import ViTConfig
from vit_flax.convert import LAYOUTS, ConversionError, Layout, Wish, layout_to_write, unwrap
from vit_flax.convert.adapter import CONFIG, IMAGES, PREFIX, WEIGHTS, match_adapter, scale_of, with_replaced
from vit_flax.convert.files import read_adapter, write_folder
from vit_flax.convert.folder import HUB
from vit_flax.convert.moves import source_shapes, sources_of
from vit_flax.convert.renaming import same_tensor
from vit_flax.lora.adapters import A, B, begin, merged
from vit_flax.lora.config import LoraConfig
from vit_flax.lora.peft_tensors import TorchNames, is_close, lora_factors, modules_and_biases
from vit_flax.lora.places import Place, all_places
from vit_flax.models import VisionTransformer
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.reading import Reading, read_model

_MEMORY = "_memory"


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model with its trained and frozen parameters, as `vit_flax.lora.adapters` takes them."""

    model: VisionTransformer
    trained: PyTree
    frozen: PyTree
    lora: LoraConfig
    layout: str

    @property
    def params(self) -> PyTree:
        """The parameters with the adapters merged."""
        return merged(self.frozen, self.trained, self.lora)


def adapter_layout(config: ViTConfig, layout: str | None) -> Layout:
    """Returns the layout of an adapter's names.

    For transformers these are the names of version 5's modules in memory, not those of files, such as
    `huggingface_vit`.

    Raises:
        ConversionError: there is no such layout, or it is not that of torch modules in memory.
    """
    chosen = layout_to_write(config, layout)
    chosen = LAYOUTS.get(chosen.name + _MEMORY, chosen)
    if chosen.join or chosen.stack:
        raise ConversionError(f"layout {chosen.name!r} is not how a torch model has its tensors in memory: no adapter "
                              "is written in it, but a merged model is")  # fmt: skip
    return chosen


def write_adapter(
    folder: str | os.PathLike[str],
    config: ViTConfig,
    trained: PyTree,
    frozen: PyTree,
    lora: LoraConfig,
    layout: str | None = None,
    base: str | None = None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Writes an adapter that peft loads into the torch model of a layout.

    Args:
        folder: folder to write, which appears whole or not at all.
        config: config of the model.
        trained: trained parameters, as `vit_flax.lora.adapters.begin` returns them.
        frozen: frozen parameters.
        lora: config of the adapters.
        layout: layout of the base model; None takes the first that can hold it.
        base: path or address of the base model, for the adapter's config.
        preprocessing: preprocessing and class names; peft ignores them.

    Raises:
        ConversionError: a layer of the layout is no torch.nn.Linear or Conv2d, only a part of a module is trained (peft
            saves whole modules), or the folder cannot be written.
    """
    own, whole = _arrays(trained), _arrays(merged(frozen, trained, lora))
    names = TorchNames(adapter_layout(config, layout), config)
    tensors, targets, ranks, alphas = lora_factors(own, {path: leaf.shape for path, leaf in whole.items()}, lora, names)
    saved, biases = modules_and_biases(own, whole, names, targets)
    address, _, revision = (base or "").removeprefix(HUB).partition("@")
    values = {
        "peft_type": "LORA", "task_type": None, "auto_mapping": None, "inference_mode": True,
        "base_model_name_or_path": address or None, "revision": revision or None, "r": lora.rank,
        "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_rslora": lora.rslora, "fan_in_fan_out": False,
        "init_lora_weights": True, "bias": lora.bias if biases else "none", "target_modules": sorted(targets),
        "modules_to_save": sorted(saved) or None, "rank_pattern": ranks, "alpha_pattern": alphas,
    }  # fmt: skip
    for module, leaves in saved.items():
        tensors |= {f"{module}.{name}": array for name, array in leaves.items()}
    tensors = {PREFIX + name: array for name, array in {**tensors, **biases}.items()}
    try:
        beside = {} if preprocessing is None else {IMAGES: preprocessing.to_dict()}
        write_folder(Path(folder), tensors, {}, {CONFIG: values, **beside}, WEIGHTS)
    except OSError as error:
        raise ConversionError(f"{folder}: cannot be written: {error.strerror or error}") from error


def load_adapter(folder: str | os.PathLike[str], wish: Wish | None = None) -> Adapted:
    """Returns the model of a peft folder with its adapters unmerged; `vit_flax.load` merges them.

    Args:
        folder: folder with adapter_config.json; the base model is in it, or at the path of its config.
        wish: what the caller asks of the base model.

    Raises:
        ConversionError: adapter or base model cannot be read, or they do not fit each other.
    """
    wish = dataclasses.replace(wish or Wish(), tower="image")
    opened = read_adapter(Path(folder))
    opened = dataclasses.replace(opened, base=unwrap(opened.base, wish.entry))
    matched = match_adapter(opened, same_tensor)
    reading = read_model(with_replaced(opened, matched), wish)
    model, params = reading.build_image_tower()
    flat: dict[str, Any] = flatten_dict(params, sep="/")  # pyright: ignore[reportAssignmentType]
    shapes = {path: leaf.shape for path, leaf in flat.items()}
    config = opened.config
    if config.get("fan_in_fan_out"):
        raise ConversionError(f"{folder}: fan_in_fan_out=True is read merged only")
    places = _places(reading, matched.pairs, shapes)
    ranks = {name: opened.tensors.shapes[matched.pairs[name]["A"]][0] for name in places}
    told = {"rank": config.get("r", 8), "alpha": config.get("lora_alpha", 8)}
    usual = LoraConfig(**told, rslora=bool(config.get("use_rslora")))
    alphas = {
        name: scale_of(opened, matched.modules[name], rank) * usual.alpha / usual.scale("", rank)
        for name, rank in ranks.items()
    }
    lora = dataclasses.replace(
        usual,
        targets=tuple(place.name for place in places.values()),
        ranks=tuple((places[name].name, rank) for name, rank in ranks.items() if rank != usual.rank),
        alphas=tuple((places[name].name, alpha) for name, alpha in alphas.items() if not is_close(alpha, usual.alpha)),
        dropout=config.get("lora_dropout") or 0.0,
        bias=config.get("bias") or "none",
        modules_to_save=_saved(reading, config, matched.replaced),
    )
    trained, frozen = begin(jax.random.key(0), params, lora)
    leaves: dict[str, Any] = dict(flatten_dict(trained, sep="/"))  # pyright: ignore[reportArgumentType]
    for name, place in places.items():
        down, up = (opened.tensors.read(matched.pairs[name][part]) for part in "AB")
        rule = sources_of(place.kernel, reading.layout.rules(reading.config))[0]
        a = rule.operation.forward(down) if len(shapes[place.kernel]) == 4 else down.T
        b = up.reshape(up.shape[:2]).T
        dtype = flat[place.kernel].dtype
        leaves[f"{place.name}/{A}"] = jax.numpy.asarray(a, dtype)
        leaves[f"{place.name}/{B}"] = jax.numpy.asarray(b, dtype)
    return Adapted(model, unflatten_dict(leaves, sep="/"), frozen, lora, reading.layout.name)


def _places(reading: Reading, pairs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Returns the place of every adapter by the name of the base's tensor."""
    assert reading.plan is not None
    today = reading.layout.renamed(reading.checkpoint.shapes)
    by_columns = {(place.kernel, place.start, place.stop): place for place in all_places(shapes)}
    found: dict[str, Place] = {}
    wanted = {today[name]: name for name in pairs}
    for kernel, move in reading.plan.moves.items():
        for number, source in enumerate(move.names):
            if source not in wanted:
                continue
            if move.change is not None:
                raise ConversionError(f"{wanted[source]} has an adapter and is resized: load the merged model")
            stops = np.cumsum([shape[0] for shape in source_shapes(move.rule, shapes[kernel])])
            start = int(stops[number - 1]) if number else 0
            place = by_columns.get((kernel, start, int(stops[number])))
            if place is None:
                raise ConversionError(f"{wanted[source]} has an adapter, and its place in {kernel} has no name")
            found[wanted[source]] = place
    if left := pairs.keys() - found.keys():
        raise ConversionError(f"{sorted(left)[0]} has an adapter and is no part of the model")
    return found


def _saved(reading: Reading, config: Mapping[str, Any], replaced: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the paths of the modules that the adapter holds whole."""
    assert reading.plan is not None
    names = config.get("modules_to_save") or []
    today = reading.layout.renamed(reading.checkpoint.shapes)
    mine = {today[name] for name in replaced if any(name.rpartition(".")[0].endswith(module) for module in names)}
    paths = [path for path, move in reading.plan.moves.items() if mine.intersection(move.names)]
    return tuple(dict.fromkeys(path.rpartition("/")[0] for path in paths))


def _arrays(tree: PyTree) -> dict[str, np.ndarray]:
    flat: dict[str, Any] = flatten_dict(tree, sep="/")  # pyright: ignore[reportAssignmentType]
    return {path: np.asarray(leaf) for path, leaf in flat.items()}
