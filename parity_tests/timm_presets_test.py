"""Presets against timm's own tables: the number of parameters, preprocessing, source and licence of every name."""

from __future__ import annotations

import math

import pytest
import torch

import vit_flax
from parity_tests.peers import import_timm
from vit_flax.models.shapes import expected_shapes
from vit_flax.presets import PRESETS, REFUSED, get_preset

timm = import_timm()

MODULES = ("vision_transformer", "deit", "eva", "beit", "vision_transformer_sam", "hieradet_sam2")
NAMES = [name for module in MODULES for name in timm.list_models(module=module) if name not in REFUSED]
TAGGED = [name for name in timm.list_models("*", include_tags=True) if name.split(".")[0] in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_as_many_parameters_as_timm_says(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
    ours = expected_shapes(vit_flax.create_model(name))
    count = sum(map(math.prod, ours.values()))
    assert (get_preset(name).config.depth, count) == (len(theirs.blocks), sum(p.numel() for p in theirs.parameters()))


def test_every_name_of_timm_is_a_preset_or_refused() -> None:
    assert set(NAMES) | set(TAGGED) <= set(PRESETS)
    assert set(timm.list_models(module="vision_transformer_hybrid")) <= set(REFUSED)


@pytest.mark.parametrize("name", NAMES + TAGGED)
def test_preprocessing_source_and_licence_are_timms(name: str) -> None:
    ours, theirs = get_preset(name), timm.get_pretrained_cfg(name)
    assert (theirs.num_classes, theirs.input_size[1:]) == (ours.config.num_classes, ours.config.image_size)
    assert (tuple(theirs.mean), tuple(theirs.std)) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.interpolation, theirs.crop_mode) == (
        ours.crop_pct,
        ours.interpolation,
        ours.crop_mode,
    )
    tag = f"{theirs.architecture}.{theirs.tag}"
    hub = f"{theirs.hf_hub_id}{tag}" if (theirs.hf_hub_id or "").endswith("/") else theirs.hf_hub_id
    assert ours.source == (hub or theirs.url or None)
    assert ours.licence == theirs.license
