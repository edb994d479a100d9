"""Checkpoint layouts and files. NumPy only: importing this loads neither jax nor torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert.checkpoint import Checkpoint, from_mapping
from vit_flax.convert.explained import EXPLAINED, EXPLAINED_T2T
from vit_flax.convert.facebook import DEIT, DEIT3, DINO, DINOV2, MAE
from vit_flax.convert.files import read_checkpoint, write_checkpoint
from vit_flax.convert.huggingface_clip import CLIP_FAMILIES
from vit_flax.convert.huggingface_dinov2 import DINOV2_FAMILY
from vit_flax.convert.huggingface_dinov3 import DINOV3_FAMILY
from vit_flax.convert.huggingface_vit import VIT_FAMILIES
from vit_flax.convert.layout import Layout, Resolved, resolve_config
from vit_flax.convert.lucidrains import LUCIDRAINS, SIMPLE_VIT
from vit_flax.convert.rules import ConversionError, Drop, Rule
from vit_flax.convert.t2t_vit import T2T_VIT
from vit_flax.convert.timm import TIMM
from vit_flax.convert.torchvision import TORCHVISION
from vit_flax.convert.wrappers import unwrap

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "ConversionError",
    "Drop",
    "Layout",
    "Resolved",
    "Rule",
    "detect_layout",
    "from_mapping",
    "get_layout",
    "layout_for",
    "read_checkpoint",
    "resolve_config",
    "unwrap",
    "write_checkpoint",
]

HUGGINGFACE = (*VIT_FAMILIES, *DINOV2_FAMILY, *DINOV3_FAMILY, *CLIP_FAMILIES)
# From the general to the special: a model is written in the first that can hold it, and tensors are taken for the last
# whose evidence is found.
_ORDER = (
    TIMM, DINO, DEIT, DEIT3, DINOV2, MAE, TORCHVISION, LUCIDRAINS, SIMPLE_VIT, T2T_VIT, *HUGGINGFACE, EXPLAINED,
    EXPLAINED_T2T,
)  # fmt: skip
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ORDER}


def get_layout(name: str) -> Layout:
    """Returns the layout of that name, or ConversionError listing the names there are."""
    if name not in LAYOUTS:
        raise ConversionError(f"unknown layout {name!r}; known: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def detect_layout(names: Collection[str], config: Mapping[str, Any] | None = None) -> tuple[Layout, str]:
    """Returns the layout that tensor names belong to, and the name that gives it away.

    Args:
        names: of the tensors.
        config: a config.json found with them; its model_type tells families of the same names apart.

    Raises:
        ConversionError: no layout matches; the message shows some of the names.
    """
    model_type = config.get("model_type") if config else None
    for layout in reversed(LAYOUTS.values()) if model_type else ():
        file = layout.config_file
        if file is not None and model_type in file.model_types and (evidence := file.spelled(names)):
            return layout, f"model_type {model_type!r} in config.json and {evidence}"
    for layout in reversed(LAYOUTS.values()):
        evidence = layout.evidence(names)
        if evidence:
            return layout, evidence
    some = ", ".join(sorted(names)[:5]) or "none at all"
    raise ConversionError(f"the tensor names match no known layout ({', '.join(LAYOUTS)}); some of them: {some}")


def layout_for(config: ViTConfig) -> Layout:
    """Returns the first layout that can hold a model of this config, or ConversionError saying why none can."""
    refusals = {layout.name: layout.refusals(config) for layout in LAYOUTS.values()}
    for name, reasons in refusals.items():
        if not reasons:
            return LAYOUTS[name]
    raise ConversionError(
        "no layout can hold this model: " + "; ".join(f"{name}: {', '.join(why)}" for name, why in refusals.items())
    )
