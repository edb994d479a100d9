"""Targets of adapters: kernels, or the columns of one part of a fused kernel."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from vit_flax.lora.config import ALL_LINEAR, LoraConfig, matches
from vit_flax.suggestions import did_you_mean, nearest

# Parts of fused layers: (first, last, of how many equal ones) of the columns.
_PARTS: dict[str, dict[str, tuple[int, int, int]]] = {
    "qkv": {"q": (0, 1, 3), "k": (1, 2, 3), "v": (2, 3, 3), "kv": (1, 3, 3)},
    "fc1": {"gate": (0, 1, 2), "value": (1, 2, 2)},
}
_HEADS = ("head", "head_dist")
# names of layers in peft's examples, transformers and timm, for suggestions
_ELSEWHERE = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "query": "q", "key": "k", "value": "v", "query_key_value": "qkv",
    "o_proj": "attn/proj", "out_proj": "attn/proj", "up_proj": "fc1", "down_proj": "fc2", "gate_proj": "gate",
    "fc1_g": "gate", "fc1_x": "value", "w12": "fc1", "w3": "fc2", "intermediate.dense": "fc1", "output.dense": "fc2",
    "dense": "fc1", "classifier": "head", "attention": "qkv", "projection": "patch_embed/proj",
}  # fmt: skip
_SHOWN = 20

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Place:
    """The target of one adapter: columns start..stop of a kernel."""

    name: str  # path of the layer, or of its part: 'blocks_0/attn/q'
    kernel: str  # path of the kernel
    start: int
    stop: int

    @property
    def bias(self) -> str:
        """The path of the layer's bias, which it may not have."""
        return self.kernel.rpartition("/")[0] + "/bias"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The trained parameters that a config selects."""

    places: tuple[Place, ...]
    whole: frozenset[str]  # paths of parameters that are trained in full
    biases: tuple[Place, ...]  # places whose biases are trained


def find_place(name: str, shapes: Shapes) -> Place | None:
    """Returns the place `name` in a model whose parameters have these shapes, or None."""
    layer = f"{name}/kernel"
    if layer in shapes:
        return Place(name, layer, 0, shapes[layer][-1])
    parent, _, part = name.rpartition("/")
    for fused, parts in _PARTS.items():
        kernel = f"{parent}/{fused}/kernel"
        if part in parts and kernel in shapes and _is_fused(kernel, fused, shapes):
            first, last, count = parts[part]
            unit = shapes[kernel][-1] // count
            return Place(name, kernel, first * unit, last * unit)
    return None


def _is_fused(kernel: str, fused: str, shapes: Shapes) -> bool:
    # a gated MLP has a first layer twice as wide as the second's input
    second = shapes.get(kernel.replace("/fc1/", "/fc2/"), (0,))
    return fused != "fc1" or shapes[kernel][-1] == 2 * second[0]


def all_places(shapes: Shapes) -> list[Place]:
    """Returns every place of a model, layers and parts."""
    names = [path.rpartition("/")[0] for path in shapes if path.endswith("/kernel")]
    parts = [f"{layer.rpartition('/')[0]}/{part}" for layer in names for part in _PARTS.get(layer.split("/")[-1], {})]
    return [place for name in (*names, *parts) if (place := find_place(name, shapes)) is not None]


def choose(config: LoraConfig, shapes: Shapes) -> Choice:
    """Selects the trained parameters of a model whose parameters have these shapes, by path.

    Raises:
        ValueError: a pattern matches nothing (the nearest names are suggested) or is no regular expression, `exclude`
            leaves no target, or a layer is both adapted and trained in full.
    """
    modules = _modules(shapes)
    saved = _select("modules_to_save", config.modules_to_save, modules)
    whole = {path for path in shapes if any(path.startswith(f"{module}/") for module in saved)}
    places = {place.name: place for place in all_places(shapes)}
    chosen: set[str] = set()
    for pattern in config.targets:
        if pattern == ALL_LINEAR:
            layers = {name for name, place in places.items() if place.kernel == f"{name}/kernel"}
            chosen |= {name for name in layers if name not in _HEADS and len(shapes[places[name].kernel]) == 2} - saved
        else:
            chosen |= _select("targets", (pattern,), places)
    chosen -= _select("exclude", config.exclude, places)
    kept = _without_parts([places[name] for name in sorted(chosen)])
    if not kept:
        raise ValueError("lora.exclude leaves none of lora.targets")
    if both := [place.name for place in kept if place.kernel in whole]:
        raise ValueError(f"{both[0]} is in lora.targets and in lora.modules_to_save; lora.exclude={both[0]} settles it")
    for field in ("ranks", "alphas"):
        _select(field, [pattern for pattern, _ in getattr(config, field)], [place.name for place in kept])
    biases: tuple[Place, ...] = ()
    if config.bias == "all":
        whole |= {path for path in shapes if "bias" in path.split("/")[-1]}
    elif config.bias == "lora_only":
        biases = tuple(place for place in kept if place.bias in shapes)
    return Choice(tuple(kept), frozenset(whole), biases)


def _modules(shapes: Shapes) -> list[str]:
    """Returns the paths of all modules with parameters, parents included."""
    found: dict[str, None] = {}
    for path in shapes:
        parts = path.split("/")[:-1]
        found |= {"/".join(parts[:count]): None for count in range(1, len(parts) + 1)}
    return list(found)


def _without_parts(places: Sequence[Place]) -> list[Place]:
    """Returns the places that lie in no other."""
    return [
        place
        for place in places
        if not any(
            other is not place
            and other.kernel == place.kernel
            and other.start <= place.start
            and place.stop <= other.stop
            for other in places
        )
    ]


def _select(field: str, patterns: Iterable[str], names: Collection[str]) -> set[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            matched = {name for name in names if matches(pattern, name)}
        except re.error as error:
            raise ValueError(f"lora.{field}: {pattern!r} is no regular expression: {error}") from error
        if not matched:
            raise ValueError(f"lora.{field}: {pattern!r} matches no layer of this model; {_hint(pattern, names)}")
        chosen |= matched
    return chosen


def _hint(pattern: str, names: Collection[str]) -> str:
    """Returns the names that a pattern may have meant, or all names, without block numbers."""
    known = {}
    for name in names:
        parts = name.split("/")
        known |= {"/".join(parts[i:]): None for i in range(len(parts))}
    last = re.split(r"[/.]|\\\.", pattern.removesuffix(".weight").removesuffix("/kernel"))[-1]
    meant = _ELSEWHERE.get(last)
    near = [meant] if meant and meant in known else nearest(pattern, known, 2) or nearest(last, known, 2)
    if near:
        return did_you_mean(near)
    plain = dict.fromkeys(re.sub(r"^blocks_\d+/", "", name) for name in names)
    return "layers are " + ", ".join(list(plain)[:_SHOWN])
