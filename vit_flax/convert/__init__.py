"""Checkpoint layouts and files. NumPy only: importing this loads neither jax nor torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping

from vit_flax.config import ViTConfig, ViTFamily
from vit_flax.convert.beit import BEIT
from vit_flax.convert.beit3 import BEIT3
from vit_flax.convert.checkpoint import Checkpoint, from_mapping
from vit_flax.convert.config_files import Beside, Family, read_config
from vit_flax.convert.dtypes import in_float32, settled
from vit_flax.convert.eva import EVA
from vit_flax.convert.eva02 import EVA02
from vit_flax.convert.explained import EXPLAINED, EXPLAINED_T2T
from vit_flax.convert.facebook import DEIT, DEIT3, DINO, DINOV2, IJEPA, MAE
from vit_flax.convert.facebook_dinov3 import FACEBOOK_DINOV3
from vit_flax.convert.files import read_checkpoint, write_checkpoint
from vit_flax.convert.flax_names import with_torch_names
from vit_flax.convert.foreign import foreign_kind
from vit_flax.convert.google import BIG_VISION, BIG_VISION_SCAN, GOOGLE_NPZ
from vit_flax.convert.huggingface_tables import HUGGINGFACE_FAMILIES, HUGGINGFACE_LAYOUTS
from vit_flax.convert.layout import Layout, Resolved, resolve_config
from vit_flax.convert.lucidrains import LUCIDRAINS, SIMPLE_VIT
from vit_flax.convert.open_clip import OPEN_CLIP, OPEN_CLIP_EVA, OPEN_CLIP_TIMM, OPEN_CLIP_TOWER
from vit_flax.convert.own_params import FLAX, FLAX_LAYOUTS, TOKENIZERS
from vit_flax.convert.perception_encoder import PERCEPTION_ENCODER, PERCEPTION_ENCODER_TOWER
from vit_flax.convert.rules import ConversionError, Drop, Rule
from vit_flax.convert.t2t_vit import T2T_VIT
from vit_flax.convert.timm import TIMM
from vit_flax.convert.timm_naflex import TIMM_NAFLEX
from vit_flax.convert.torchvision import TORCHVISION
from vit_flax.convert.training_only import without_training
from vit_flax.convert.wish import Wish
from vit_flax.convert.wrappers import Anchor, take
from vit_flax.suggestions import suggest

__all__ = [
    "FAMILIES",
    "LAYOUTS",
    "Beside",
    "Checkpoint",
    "ConversionError",
    "Drop",
    "Layout",
    "Resolved",
    "Rule",
    "Wish",
    "detect_layout",
    "find_layout",
    "from_mapping",
    "get_layout",
    "in_float32",
    "layout_for",
    "layout_to_write",
    "open_checkpoint",
    "read_beside",
    "read_checkpoint",
    "resolve_config",
    "unwrap",
    "write_checkpoint",
]

# From the general to the special: a model is written in the first that can hold it, and tensors are taken for the last
# whose evidence is found.
_ORDER = (
    TIMM, DINO, DEIT, DEIT3, DINOV2, IJEPA, MAE, OPEN_CLIP_TIMM, OPEN_CLIP, OPEN_CLIP_TOWER, TORCHVISION, GOOGLE_NPZ,
    BIG_VISION, BIG_VISION_SCAN, EVA, EVA02, FACEBOOK_DINOV3, OPEN_CLIP_EVA, PERCEPTION_ENCODER,
    PERCEPTION_ENCODER_TOWER, BEIT, BEIT3, TIMM_NAFLEX, LUCIDRAINS, SIMPLE_VIT, T2T_VIT, EXPLAINED, EXPLAINED_T2T,
    *FLAX_LAYOUTS, *HUGGINGFACE_LAYOUTS,
)  # fmt: skip
_READ_ONLY = {layout.name for layout in FLAX_LAYOUTS}
# every layout by its name, from the general to the special
LAYOUTS: dict[str, Layout] = {layout.name: without_training(layout) for layout in _ORDER}

# By the model_type of Hugging Face's config.json.
FAMILIES: dict[str, Family] = HUGGINGFACE_FAMILIES


def get_layout(name: str) -> Layout:
    """Returns the layout of that name, or ConversionError suggesting the nearest."""
    if name not in LAYOUTS:
        hint = suggest(name, LAYOUTS, "`vit-flax list layouts` lists them")
        raise ConversionError(f"unknown layout {name!r}; {hint}")
    return LAYOUTS[name]


def detect_layout(names: Collection[str], config_class: ViTFamily | None = None) -> tuple[Layout, str]:
    """Returns the layout that tensor names belong to, and the name that gives it away.

    Where the caller's config names the family, its layouts come first, and names that others have too are enough.

    Raises:
        ConversionError: no layout matches; the message shows some of the names.
    """
    if kind := foreign_kind(names, taken=True):
        raise ConversionError(f"no model of this library: {kind}")
    family = [layout for layout in reversed(LAYOUTS.values()) if layout.config_class is config_class]
    for layout, tell in [*((f, f.evidence) for f in family), *((f, f.belongs) for f in family)]:
        if tell and (evidence := tell(names)):
            return layout, evidence
    for layout in reversed(LAYOUTS.values()):
        evidence = layout.evidence(names)
        if evidence:
            return layout, evidence
    if kind := foreign_kind(names):
        raise ConversionError(f"the tensor names match no known layout: {kind}")
    some = ", ".join(sorted(names)[:5]) or "none at all"
    raise ConversionError(f"the tensor names match no known layout (`vit-flax list layouts` has them); some: {some}")


def open_checkpoint(source: str | os.PathLike[str] | Mapping[str, object], wish: Wish) -> Checkpoint:
    """Opens named arrays, or weights as `read_checkpoint` does, without what training scripts wrap around them."""
    opened = from_mapping(source) if isinstance(source, Mapping) else read_checkpoint(source)
    opened = unwrap(opened, wish.entry)
    return in_float32(opened) if wish.float32 else opened


def find_layout(checkpoint: Checkpoint, wish: Wish, beside: Beside | None) -> tuple[Layout, str]:
    """Returns the layout of a checkpoint and what it was told by; `beside` is what its own config says.

    Raises:
        ConversionError: there is no such layout, none matches, or several families have these names.
    """
    if wish.layout is not None:
        return get_layout(wish.layout), "given"
    if beside and beside.layout:
        if "model_config" in (checkpoint.config or {}):
            return get_layout(beside.layout), beside.origin
        # the names that the library has in memory, or those of files
        for name in (f"{beside.layout}_memory", beside.layout):
            named = LAYOUTS.get(name)
            if named and (named.belongs or named.evidence)(checkpoint.shapes.keys()):
                return named, beside.origin
    told = wish.told_config()
    try:
        found, evidence = detect_layout(checkpoint.shapes, told[1].family if told else None)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint.source}: {error}") from error
    if told is None and beside is None and (others := found.unsettled(checkpoint.shapes)):
        raise ConversionError(f"{checkpoint.source}: has {evidence}: {others}")
    return found, f"has {evidence}"


def unwrap(checkpoint: Checkpoint, entry: str | None = None) -> Checkpoint:
    """Returns the checkpoint with the model's own names, wherever in it the model stands; see `wrappers.take`."""
    return settled(take(with_torch_names(checkpoint), entry, _anchors()))


@functools.cache
def _anchors() -> tuple[Anchor, ...]:
    anchors = [Anchor(name, FLAX.evidence) for name in TOKENIZERS]  # makes tokens of an image: every model has one
    for layout in LAYOUTS.values():
        rules = layout.rules(layout.config_class())
        sources = {rule.source if isinstance(rule, Drop) else rule.sources[0] for rule in rules}
        beside = {source.split(".")[0] for source in (*sources, *layout.outside)}
        for rule in rules:
            if isinstance(rule, Rule) and rule.target in TOKENIZERS:
                anchors.append(Anchor(rule.sources[0], layout.evidence))
                anchors += [Anchor(p + rule.sources[0], layout.evidence, p, beside) for p in layout.prefixes]
    return tuple(anchors)


def read_beside(checkpoint: Checkpoint) -> Beside | None:
    """Returns what the config with a checkpoint says, or None where there is none of a known kind.

    Raises:
        ConversionError: it asks for what this library does not compute.
    """
    return read_config(checkpoint.config, FAMILIES, checkpoint.source) if checkpoint.config else None


def layout_for(config: ViTConfig) -> Layout:
    """Returns the first layout of another library that can hold a model of this config.

    Raises:
        ConversionError: none can; why is said for each.
    """
    refusals = {layout.name: layout.refusals(config) for layout in LAYOUTS.values() if layout.name not in _READ_ONLY}
    for name, reasons in refusals.items():
        if not reasons:
            return LAYOUTS[name]
    raise ConversionError(
        "no layout can hold this model: " + "; ".join(f"{name}: {', '.join(why)}" for name, why in refusals.items())
    )


def layout_to_write(config: ViTConfig, layout: str | None) -> Layout:
    """Returns the layout of that name, or for None the first that can hold a model of this config.

    Raises:
        ConversionError: it, or every layout, cannot hold the model; the message says why.
    """
    if layout is None:
        return layout_for(config)
    chosen = get_layout(layout)
    if refusals := chosen.refusals(config):
        raise ConversionError(f"layout {layout!r} cannot hold this model: {'; '.join(refusals)}")
    return chosen
