"""An adapter's tensors in peft's format, under the names of torch's modules."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from vit_flax.config import ViTConfig
from vit_flax.convert import ConversionError, Layout
from vit_flax.convert.moves import source_shapes, sources_of
from vit_flax.convert.rules import CONV, DENSE, Rule
from vit_flax.lora.adapters import A, B
from vit_flax.lora.config import LoraConfig
from vit_flax.lora.places import Place, find_place

# operations on kernels that keep a layer's inputs and outputs separate axes
_MOVES = (DENSE.name, CONV.name, "(out, in) each -> (in, sum of outs)", "(out, C p p) -> (p, p, C, out)")


class TorchNames:
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


def lora_factors(
    own: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], lora: LoraConfig, names: TorchNames
) -> tuple[dict[str, np.ndarray], list[str], dict[str, int], dict[str, float]]:
    """Returns peft's lora_A and lora_B, their modules, and the ranks and alphas that differ from the config's."""
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
            if not is_close(alpha, lora.alpha):
                alphas[module] = alpha
    return tensors, targets, ranks, alphas


def modules_and_biases(
    own: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray], names: TorchNames, targets: list[str]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Returns the other trained parameters: whole modules with their tensors, and biases by name.

    Raises:
        ConversionError: peft cannot save the parameter, or would match another module by its name.
    """
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


def is_close(a: float, b: float) -> bool:
    """Returns whether two numbers agree to a relative 1e-12."""
    return math.isclose(a, b, rel_tol=1e-12)
