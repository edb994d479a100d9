"""Checkpoint layouts and files. NumPy only: importing this loads neither jax nor torch."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from vit_flax.config import ModelConfig, TwoTowersConfig, TwoTowersFamily, ViTFamily
from vit_flax.convert.beit import BEIT
from vit_flax.convert.beit3 import BEIT3
from vit_flax.convert.checkpoint import Checkpoint, from_mapping
from vit_flax.convert.config_files import Beside, Family, TextFile, read_config
from vit_flax.convert.detectron2 import DETECTRON2
from vit_flax.convert.dtypes import in_float32, settled
from vit_flax.convert.eva import EVA
from vit_flax.convert.eva02 import EVA02
from vit_flax.convert.explained import EXPLAINED, EXPLAINED_T2T
from vit_flax.convert.facebook import DEIT, DEIT3, DINO, DINOV2, IJEPA, MAE
from vit_flax.convert.facebook_dinov3 import FACEBOOK_DINOV3
from vit_flax.convert.facebook_sam3 import FACEBOOK_SAM3
from vit_flax.convert.files import read_checkpoint, write_checkpoint
from vit_flax.convert.fitting import steps_to
from vit_flax.convert.flax_names import with_torch_names
from vit_flax.convert.foreign import foreign_kind, foreign_text
from vit_flax.convert.google import BIG_VISION, BIG_VISION_SCAN, GOOGLE_NPZ
from vit_flax.convert.google_naflex import BIG_VISION_NAFLEX, BIG_VISION_NAFLEX_SCAN
from vit_flax.convert.google_text import BIG_VISION_TEXT_LAYOUTS
from vit_flax.convert.huggingface_clip_text import CLIP_TEXT_FILES, CLIP_TEXT_LAYOUTS
from vit_flax.convert.huggingface_tables import HUGGINGFACE_FAMILIES, HUGGINGFACE_LAYOUTS
from vit_flax.convert.layout import Layout
from vit_flax.convert.lucidrains import LUCIDRAINS, SIMPLE_VIT
from vit_flax.convert.mmpretrain import MMPRETRAIN, MMPRETRAIN_BEIT
from vit_flax.convert.open_clip import OPEN_CLIP, OPEN_CLIP_EVA, OPEN_CLIP_TIMM, OPEN_CLIP_TOWER
from vit_flax.convert.open_clip_text import OPEN_CLIP_TEXT_LAYOUTS
from vit_flax.convert.orbax_folder import SUFFIX as ORBAX
from vit_flax.convert.own_params import FLAX, FLAX_LAYOUTS, TOKENIZERS, evidence_of_both
from vit_flax.convert.perception_encoder import PERCEPTION_ENCODER, PERCEPTION_ENCODER_TOWER
from vit_flax.convert.resolving import Resolved, resolve_config
from vit_flax.convert.rules import ConversionError, Drop, Rule
from vit_flax.convert.t2t_vit import T2T_VIT
from vit_flax.convert.timm import TIMM
from vit_flax.convert.timm_naflex import TIMM_NAFLEX
from vit_flax.convert.timm_sam import SEGMENT_ANYTHING, TIMM_SAM
from vit_flax.convert.timm_sam2 import SEGMENT_ANYTHING_2, TIMM_SAM2
from vit_flax.convert.torchvision import TORCHVISION
from vit_flax.convert.training_only import without_training
from vit_flax.convert.two_towers import IMAGE, SUFFIX, holds_text
from vit_flax.convert.wish import TOWERS, Wish
from vit_flax.convert.wrappers import Anchor, take
from vit_flax.suggestions import suggest

__all__ = [
    "FAMILIES",
    "LAYOUTS",
    "TOWERS",
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
    "holds_text",
    "in_float32",
    "layout_for",
    "layout_to_write",
    "open_checkpoint",
    "own_layout",
    "read_beside",
    "read_checkpoint",
    "read_source",
    "resolve_config",
    "unwrap",
    "write_checkpoint",
]

# From the general to the special: a model is written in the first that can hold it, and tensors are taken for the last
# whose evidence is found.
_ORDER = (
    TIMM, DINO, DEIT, DEIT3, DINOV2, IJEPA, MAE, OPEN_CLIP_TIMM, OPEN_CLIP, OPEN_CLIP_TOWER, TORCHVISION, GOOGLE_NPZ,
    BIG_VISION, BIG_VISION_SCAN, BIG_VISION_NAFLEX, BIG_VISION_NAFLEX_SCAN,
    EVA, EVA02, FACEBOOK_DINOV3, OPEN_CLIP_EVA, PERCEPTION_ENCODER,
    PERCEPTION_ENCODER_TOWER, BEIT, BEIT3, MMPRETRAIN, MMPRETRAIN_BEIT, TIMM_NAFLEX, TIMM_SAM, SEGMENT_ANYTHING,
    TIMM_SAM2, SEGMENT_ANYTHING_2, DETECTRON2, LUCIDRAINS, SIMPLE_VIT, T2T_VIT, EXPLAINED, EXPLAINED_T2T,
    *FLAX_LAYOUTS, *HUGGINGFACE_LAYOUTS, FACEBOOK_SAM3,
    *OPEN_CLIP_TEXT_LAYOUTS, *BIG_VISION_TEXT_LAYOUTS, *CLIP_TEXT_LAYOUTS,
)  # fmt: skip
_READ_ONLY = {layout.name for layout in FLAX_LAYOUTS}  # written where it is asked for
_NEAREST, _SHOWN = 2, 5  # layouts that a message names
# every layout by its name, from the general to the special
LAYOUTS: dict[str, Layout] = {layout.name: without_training(layout) for layout in _ORDER}

# By the model_type of Hugging Face's config.json.
FAMILIES: dict[str, Family] = HUGGINGFACE_FAMILIES
TEXT_FILES: dict[str, TextFile] = CLIP_TEXT_FILES


def get_layout(name: str) -> Layout:
    """Returns the layout of that name, or ConversionError suggesting the nearest."""
    if name not in LAYOUTS:
        hint = suggest(name, LAYOUTS, "`vit-flax list layouts` lists them")
        raise ConversionError(f"unknown layout {name!r}; {hint}")
    return LAYOUTS[name]


def detect_layout(
    names: Collection[str], config_class: ViTFamily | TwoTowersFamily | None = None, takes_text: bool = False
) -> tuple[Layout, str]:
    """Detects the layout from tensor names; returns it with the name that is the evidence.

    Where the caller's config names the family, its layouts come first, and names that others have too are enough. Of
    two-tower models it is the image tower's, unless a text tower `takes_text`.

    Raises:
        ConversionError: no layout matches; the message shows some of the names.
    """
    if kind := foreign_kind(names, taken=True):
        raise ConversionError(f"no model of this library: {kind}")
    layouts = [layout for layout in reversed(LAYOUTS.values()) if takes_text or not holds_text(layout)]
    family = [layout for layout in layouts if layout.config_class == config_class]
    for layout, tell in [*((f, f.evidence) for f in family), *((f, f.belongs) for f in family)]:
        if tell and (evidence := tell(names)):
            return layout, evidence
    for layout in layouts:
        evidence = layout.evidence(names)
        if evidence:
            return layout, evidence
    if kind := foreign_kind(names):
        raise ConversionError(f"the tensor names match no known layout: {kind}")
    some = ", ".join(sorted(names)[:5]) or "none at all"
    raise ConversionError(f"the tensor names match no known layout (`vit-flax list layouts` has them); some: {some}")


def read_source(source: str | os.PathLike[str] | Mapping[str, object], float32: bool = False) -> Checkpoint:
    """Reads a state dict, or weights as `read_checkpoint` does; with `float32` its tensors are cast."""
    opened = from_mapping(source) if isinstance(source, Mapping) else read_checkpoint(source)
    return in_float32(opened) if float32 else opened


def open_checkpoint(source: str | os.PathLike[str] | Mapping[str, object], wish: Wish) -> Checkpoint:
    """Opens a state dict, or weights as `read_checkpoint` does, unwrapped from the entries of training scripts."""
    opened = read_source(source)
    towers = wish.takes_text and (wish.layout is None or holds_text(get_layout(wish.layout)))
    opened = unwrap(opened, wish.entry, towers)
    return in_float32(opened) if wish.float32 else opened


def find_layout(checkpoint: Checkpoint, wish: Wish, beside: Beside | None) -> tuple[Layout, str]:
    """Returns a checkpoint's layout and the evidence for it; `beside` is what its own config says.

    Raises:
        ConversionError: there is no such layout, none matches, or several families have these names.
    """
    found, evidence = _find_layout(checkpoint, wish, beside)
    if wish.tower == "both" and not holds_text(found):
        kind = foreign_text(checkpoint.shapes)
        told = f"{kind}: load(..., tower='image') and vit-flax features read its image tower" if kind else evidence
        raise ConversionError(f"{checkpoint.source}: has no text tower of a known kind ({told})")
    return found, evidence


def _find_layout(checkpoint: Checkpoint, wish: Wish, beside: Beside | None) -> tuple[Layout, str]:
    if wish.layout is not None:
        return get_layout(_with_text(wish.layout) if wish.tower == "both" else wish.layout), "given"
    if beside and beside.layout:
        if "model_config" in (checkpoint.config or {}):
            own = get_layout(beside.layout)
            if wish.takes_text or not holds_text(own):
                return own, beside.origin
        # both towers, or the names that the library has in memory, or those of files
        image = re.sub("_with_(custom_)?text$", "", beside.layout)
        towers = (f"{image}{SUFFIX}", f"{image}_with_custom_text") if wish.takes_text and beside.text else ()
        for name in (*towers, f"{image}_memory", image):
            named = LAYOUTS.get(name)
            if named and (named.belongs or named.evidence)(checkpoint.shapes.keys()):
                return named, beside.origin
    told = wish.told_config()
    takes_text = wish.takes_text and (beside is None or beside.text is not None)
    try:
        found, evidence = detect_layout(checkpoint.shapes, told[1].family if told else None, takes_text)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint.source}: {error}") from error
    if told is None and beside is None and (others := found.unsettled(checkpoint.shapes)):
        raise ConversionError(f"{checkpoint.source}: has {evidence}: {others}")
    return found, f"has {evidence}"


def unwrap(checkpoint: Checkpoint, entry: str | None = None, takes_text: bool = False) -> Checkpoint:
    """Returns the checkpoint with the model's own names, without wrappers and prefixes; see `wrappers.take`.

    Where a text tower `takes_text` it stands beside the image tower, and both are the model.
    """
    return settled(take(with_torch_names(checkpoint), entry, _anchors(takes_text)))


@functools.cache
def _anchors(takes_text: bool) -> tuple[Anchor, ...]:
    anchors = [Anchor(name, FLAX.evidence) for name in TOKENIZERS]  # makes tokens of an image: every model has one
    if takes_text:
        anchors += [Anchor(f"{IMAGE}{name}", evidence_of_both) for name in TOKENIZERS]
    tokenizers = {*TOKENIZERS, *(f"{IMAGE}{path}" for path in TOKENIZERS)}
    for layout in LAYOUTS.values():
        if holds_text(layout) and not takes_text:
            continue
        rules = layout.rules(layout.config_class())
        sources = {rule.source if isinstance(rule, Drop) else rule.sources[0] for rule in rules}
        beside = {re.split(r"[./]", source)[0] for source in (*sources, *layout.outside)}
        for rule in rules:
            if isinstance(rule, Rule) and rule.target in tokenizers:
                anchors.append(Anchor(rule.sources[0], layout.evidence))
                anchors += [Anchor(p + rule.sources[0], layout.evidence, p, beside) for p in layout.prefixes]
    return tuple(anchors)


def read_beside(checkpoint: Checkpoint) -> Beside | None:
    """Returns what the config with a checkpoint says, or None where there is none of a known kind.

    Raises:
        ConversionError: it asks for what this library does not compute.
    """
    return read_config(checkpoint.config, FAMILIES, checkpoint.source, TEXT_FILES) if checkpoint.config else None


def layout_for(config: ModelConfig) -> Layout:
    """Returns the first layout of another library that can hold a model of this config.

    Raises:
        ConversionError: none can; why is said for those that come nearest, and which of this library's own can.
    """
    refusals = {layout.name: layout.refusals(config) for layout in LAYOUTS.values() if layout.name not in _READ_ONLY}
    for name, reasons in refusals.items():
        if not reasons:
            return LAYOUTS[name]
    # those of the model's own family come first: of any other that is all there is to say
    nearest = sorted(refusals, key=lambda name: (LAYOUTS[name].config_class != config.family, len(refusals[name])))
    why = "; ".join(f"{name}: {', '.join(refusals[name])}" for name in nearest[:_NEAREST])
    raise ConversionError(f"no layout of another library can hold this model (nearest: {why}){_others(config)}")


def _others(config: ModelConfig) -> str:
    """Returns which layouts can hold a model of this config, as the end of a sentence."""
    names = [layout.name for layout in LAYOUTS.values() if not layout.refusals(config)]
    theirs = [name for name in names if name not in _READ_ONLY][:_SHOWN]
    own = [f"{name} (this library's own)" for name in names if name in _READ_ONLY]
    return f"; {', '.join([*theirs, *own])} can" if names else ""


def own_layout(config: ModelConfig) -> Layout:
    """Returns the layout of this library's own parameters for a model of this config.

    Raises:
        ConversionError: there is none.
    """
    for layout in FLAX_LAYOUTS:
        if not layout.refusals(config):
            return layout
    raise ConversionError(f"parameters of model_config={config.family.name} are written in another library's layout")


def layout_to_write(config: ModelConfig, layout: str | None, path: str | os.PathLike[str] = "") -> Layout:
    """Returns the layout of that name, or for None the first that can hold a model of this config.

    A `path` that ends in .orbax is a folder of this library's own parameters, whatever else could hold the model.

    Raises:
        ConversionError: it, or every layout, cannot hold the model; the message says why.
    """
    if Path(path).suffix == ORBAX:
        if layout is not None and not layout.startswith(FLAX.name):
            raise ConversionError(f"{path}: a folder of Orbax holds this library's own parameters, in no other layout")
        return own_layout(config)
    if layout is None:
        return layout_for(config)
    if isinstance(config, TwoTowersConfig):
        layout = _with_text(layout)
    chosen = get_layout(layout)
    if refusals := chosen.refusals(config):
        way = ""
        if steps_to(chosen, config):
            way = f"; `vit_flax.fit_layout(model, params, {layout!r})` gives the same model as it has it"
        way = way or _others(config)
        raise ConversionError(f"layout {layout!r} cannot hold this model: {'; '.join(refusals)}{way}")
    return chosen


def _with_text(layout: str) -> str:
    """Returns the name of the layout of both towers, where that of the image tower is given."""
    return f"{layout}{SUFFIX}" if f"{layout}{SUFFIX}" in LAYOUTS else layout
