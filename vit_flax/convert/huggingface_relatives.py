"""Hugging Face's models whose image towers are those of other families: by the attributes' defaults, or by one name.

MetaCLIP 2, Chinese-CLIP, AltCLIP and CLIPSeg have CLIP's tower; OWL-ViT and OWLv2 too, with one name spelled otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.huggingface_clip import CLIP_FAMILIES, CLIP_LAYOUTS
from vit_flax.convert.layout import Layout, Shapes
from vit_flax.convert.rules import Drop, Rule

_CLIP = CLIP_FAMILIES["clip"]
_THEIRS, _CLIPS = "pre_layernorm", "pre_layrnorm"
_BEFORE = f"vision_model.{_THEIRS}.weight"


def _owlvit(clip: Layout) -> Layout:
    """Returns CLIP's layout with OWL-ViT's name of the first norm; files and memory are alike."""

    def rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
        spelled = {f"{_CLIPS}.{part}": f"{_THEIRS}.{part}" for part in ("weight", "bias")}
        return tuple(
            dataclasses.replace(rule, source=spelled[rule.sources[0]])
            if isinstance(rule, Rule) and rule.sources[0] in spelled
            else rule
            for rule in clip.rules(config)
        )

    def evidence(names: Collection[str]) -> str | None:
        return next((name for name in names if f".{name}".endswith(f".{_BEFORE}")), None)

    def infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, object]:
        return {**clip.infer(shapes, known), "global_pool": "token", "fc_norm": True}

    def write(config: ViTConfig) -> Mapping[str, object]:
        assert clip.config_file is not None
        tower = clip.config_file(config)
        return {**tower, "architectures": ["OwlViTVisionModel"], "model_type": "owlvit_vision_model"}

    return dataclasses.replace(
        clip,
        name="huggingface_owlvit",
        description="Hugging Face's image tower of OWL-ViT and OWLv2",
        evidence=evidence,
        infer=infer,
        rules=rules,
        fixed={
            **clip.fixed, "head_bias": (False,), "final_norm": (True,), "fc_norm": (True,), "global_pool": ("token",),
        },
        components=lambda config: tuple((a.replace(_CLIPS, _THEIRS), b) for a, b in clip.components(config)),
        heads=(),
        config_file=write,
    )  # fmt: skip


def _altclip(clip: Layout) -> Layout:
    """Returns CLIP's layout for what transformers 5 saves of AltCLIP: `layer` for `layers`, in both towers."""
    told = hf.ending("vision_model.encoder.layer.0.layer_norm1.weight")
    return dataclasses.replace(
        clip,
        name="huggingface_altclip",
        description="Hugging Face's image tower of AltCLIP, as transformers 5 saves it; written as CLIP's",
        evidence=told,
        belongs=lambda names: told(names) or (clip.belongs or clip.evidence)(names),
        aliases=(("encoder.layer.{i}.{rest}", "encoder.layers.{i}.{rest}"),),
    )


_CLIP_FILES = next(layout for layout in CLIP_LAYOUTS if layout.name == "huggingface_clip")
RELATED_LAYOUTS: tuple[Layout, ...] = (_owlvit(_CLIP_FILES), _altclip(_CLIP_FILES))


def _towers(name: str, family: Family) -> dict[str, Family]:
    return {name: family, f"{name}_vision_model": family}


def _owl(patch_size: int) -> Family:
    sizes = {"image_size": 768, "patch_size": patch_size}
    return dataclasses.replace(_CLIP, layout="huggingface_owlvit", defaults={**_CLIP.defaults, **sizes})


RELATED_FAMILIES: dict[str, Family] = {
    **_towers("metaclip_2", _CLIP),
    **_towers("chinese_clip", _CLIP),
    **_towers("altclip", dataclasses.replace(_CLIP, layout="huggingface_altclip")),
    **_towers("clipseg", _CLIP),
    **_towers("owlvit", _owl(32)),
    **_towers("owlv2", _owl(16)),
}
