"""Adapters in peft's format: a folder of adapter_config.json and adapter_model.safetensors.

A fused layer here may be several layers in torch, and the other way round: the parts of one adapter then share A, and
adapters of the parts of one layer become one adapter whose rank is the sum of theirs.
"""

from __future__ import annotations

import dataclasses
import math
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
from vit_flax.convert.rules import CONV, DENSE, Rule
from vit_flax.lora.adapters import A, B, begin, merged
from vit_flax.lora.config import LoraConfig
from vit_flax.lora.places import Place, all_places, find_place
from vit_flax.models import VisionTransformer
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.reading import Reading, read_model

# operations on kernels that keep a layer's inputs and outputs separate axes
_MOVES = (DENSE.name, CONV.name, "(out, in) each -> (in, sum of outs)", "(out, C p p) -> (p, p, C, out)")
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
    names = _Names(adapter_layout(config, layout), config)
    tensors, targets, ranks, alphas = _pairs(own, {path: leaf.shape for path, leaf in whole.items()}, lora, names)
    saved, biases = _others(own, whole, names, targets)
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


class _Names:
    """Names of parameters in a layout."""

    def __init__(self, layout: Layout, config: ViTConfig) -> None:
        self.layout, self.rules, self.prefix = layout, layout.rules(config), layout.prefix(config)

    def of(self, path: str) -> tuple[Rule, list[str]]:
        """Returns the rule of a parameter and the names of its tensors in the layout."""
        rule, names = sources_of(path, self.rules)
        return rule, [name if name.startswith(self.layout.outside) else self.prefix + name for name in names]

    def modules(self, path: str) -> tuple[Rule, list[str]]:
        """Returns the rule of a kernel and the names of its torch modules."""
        rule, names = self.of(path)
        if rule.operation.name not in _MOVES or not all(name.endswith(".weight") for name in names):
            raise ConversionError(
                f"layout {self.layout.name!r} has {path} as {', '.join(names)} ({rule.operation.name}), for which peft "
                "has no adapter; write it in another layout, or the merged model"
            )
        return rule, [name.removesuffix(".weight") for name in names]


def _pairs(
    own: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], lora: LoraConfig, names: _Names
) -> tuple[dict[str, np.ndarray], list[str], dict[str, int], dict[str, float]]:
    """Returns the tensors of all adapters, the modules that have one, and ranks and alphas other than the config's."""
    by_kernel: dict[str, list[Place]] = {}
    for path in own:
        if path.endswith(f"/{A}"):
            place = find_place(path.removesuffix(f"/{A}"), shapes)
            assert place is not None
            by_kernel.setdefault(place.kernel, []).append(place)
    tensors: dict[str, np.ndarray] = {}
    targets: list[str] = []
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for kernel, places in by_kernel.items():
        rule, modules = names.modules(kernel)
        widths = [shape[0] for shape in source_shapes(rule, shapes[kernel])]
        stops = np.cumsum(widths)
        for module, start, stop in zip(modules, stops - widths, stops, strict=True):
            inside = [place for place in places if place.start < stop and start < place.stop]
            if not inside:
                continue
            factors = [(own[f"{place.name}/{A}"], own[f"{place.name}/{B}"]) for place in inside]
            scales = [lora.scale(place.name, a.shape[-1]) for place, (a, _) in zip(inside, factors, strict=True)]
            downs, ups = [], []
            for place, (a, b), scale in zip(inside, factors, scales, strict=True):
                downs.append(a)
                after = max(stop - place.stop, 0)
                columns = b[:, max(start - place.start, 0) : b.shape[1] - max(place.stop - stop, 0)]
                columns = np.pad(columns, ((0, 0), (max(place.start - start, 0), after)))
                ups.append(columns if scale == scales[0] else columns * (scale / scales[0]))
            down, up = np.concatenate(downs, -1), np.concatenate(ups)
            # A has the kernel's operation, with rank outputs
            moved = rule.operation.inverse(down)[0] if down.ndim == 4 else down.T
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(moved)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(
                up.T[:, :, None, None] if moved.ndim == 4 else up.T
            )
            targets.append(module)
            alpha = scales[0] * (math.sqrt(len(up)) if lora.rslora else len(up))
            if len(up) != lora.rank:
                ranks[module] = len(up)
            if not _close(alpha, lora.alpha):
                alphas[module] = alpha
    return tensors, targets, ranks, alphas


def _others(
    own: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray], names: _Names, targets: list[str]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Returns the other trained parameters: whole modules with their tensors, and biases by name."""
    children: dict[str, list[str]] = {}
    for path in whole:
        children.setdefault(path.rpartition("/")[0], []).append(path)
    biases: dict[str, np.ndarray] = {}
    saved: dict[str, dict[str, np.ndarray]] = {}
    for path in own:
        name, _, kind = path.rpartition("/")
        if kind in (A, B):
            continue
        place = find_place(name, {p: a.shape for p, a in whole.items()}) if path not in whole else None
        full = path if place is None else place.bias
        rule, sources = names.of(full)
        arrays = dict(zip(sources, rule.operation.inverse(whole[full]), strict=True))
        is_whole = bool(name) and place is None and all(child in own for child in children[name])
        if is_whole:
            for source, array in arrays.items():
                module, _, leaf = source.rpartition(".")
                saved.setdefault(module, {})[leaf] = np.ascontiguousarray(array)
        elif "bias" in kind:
            stops = np.cumsum([len(array) for array in arrays.values()])
            for (source, array), stop in zip(arrays.items(), stops, strict=True):
                if place is None or (place.start < stop and stop - len(array) < place.stop):
                    module, _, leaf = source.rpartition(".")
                    key = f"{module}.base_layer.{leaf}" if module in targets else source
                    biases[key] = np.ascontiguousarray(array)
        else:
            raise ConversionError(f"{path} is trained, and peft saves only whole modules: no adapter is written")
    others = {source.rpartition(".")[0] for path in whole for source in names.of(path)[1]}
    for module in saved:
        if also := sorted(other for other in others - saved.keys() if other.endswith(module)):
            raise ConversionError(f"peft would take {also[0]} for {module}, which is trained whole: no adapter is "
                                  "written")  # fmt: skip
    return saved, biases


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
        alphas=tuple((places[name].name, alpha) for name, alpha in alphas.items() if not _close(alpha, usual.alpha)),
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


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-12)


def _arrays(tree: PyTree) -> dict[str, np.ndarray]:
    flat: dict[str, Any] = flatten_dict(tree, sep="/")  # pyright: ignore[reportAssignmentType]
    return {path: np.asarray(leaf) for path, leaf in flat.items()}
