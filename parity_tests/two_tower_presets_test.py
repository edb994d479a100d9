"""Presets of two towers against transformers' classes, built on the meta device."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest
import torch

import vit_flax
from parity_tests.peers import import_transformers
from vit_flax.cli.main import main
from vit_flax.cli.plan import build_config
from vit_flax.convert import LAYOUTS, holds_text
from vit_flax.models import TwoTowers, build_model
from vit_flax.models.shapes import expected_shapes
from vit_flax.presets import TWO_TOWERS, get_preset

transformers = import_transformers()
QUICK = (
    "openai/clip-vit-base-patch32_with_text", "google/siglip2-base-patch16-naflex_with_text",
    "facebook/metaclip-2-worldwide-huge-378_with_text",
)  # fmt: skip


def written(name: str) -> dict[str, Any]:
    """Returns the config.json of the first layout of transformers that holds the preset."""
    config = TWO_TOWERS[name].config
    fitting = [layout for layout in LAYOUTS.values() if layout.name.startswith("huggingface") and holds_text(layout)]
    layout = next(layout for layout in fitting if not layout.refusals(config))
    assert layout.config_file is not None
    return dict(layout.config_file(config))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TWO_TOWERS]
)
def test_transformers_model_of_a_preset_has_the_same_parameters(name):
    told = written(name)
    kind = getattr(transformers, told["architectures"][0])
    values = {key: value for key, value in told.items() if key not in ("architectures", "model_type")}
    with torch.device("meta"):
        theirs = kind(kind.config_class(**values))
    shapes = expected_shapes(build_model(TWO_TOWERS[name].config))
    assert sum(p.numel() for p in theirs.parameters()) == sum(math.prod(shape) for shape in shapes.values())
    if "metaclip" not in name:
        # one preset of one tower is this one's image tower
        image = name.removesuffix("_with_text")
        assert "naflex" in name or get_preset(image).config == TWO_TOWERS[name].config.image


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("openai/clip-vit-base-patch32_with_text", "CLIPConfig"),
        ("google/siglip-base-patch16-224_with_text", "SiglipConfig"),
    ],
)
def test_what_the_libraries_classes_build_by_default_is_a_preset(name, kind):
    usual = getattr(transformers, kind)().to_dict()
    told = written(name)
    for tower in ("text_config", "vision_config"):
        for key, value in told[tower].items():
            if key in usual[tower] and key != "eos_token_id":  # older files say 2 for the highest number
                assert usual[tower][key] == value, (tower, key)


def test_a_preset_is_created_listed_loaded_and_planned(tmp_path, capsys):
    name = "google/siglip-base-patch16-224_with_text"
    small = {"depth": 1, "embed_dim": 32, "num_heads": 2, "text_depth": 1, "text_embed_dim": 16, "text_num_heads": 2}
    model = vit_flax.create_model(name, **small, image_size=(32, 32), text_vocab_size=50, text_output_dim=32)
    assert isinstance(model, TwoTowers)
    assert model.config.text.context_length == 64
    assert main(["list", "presets", "siglip-base-patch16-224"]) == 0
    assert name in capsys.readouterr().out
    with pytest.raises(ValueError, match="did you mean 'google/siglip-base-patch16-224_with_text'"):
        get_preset("google/siglip-base-patch16-224_with_txt")
    options = argparse.Namespace(what=name, changes=[], batch=None, dtype=None, remat=None, scan=None)
    planned = build_config(options, 16)
    assert (planned.data.batch_size, planned.loss.name, planned.model) == (1024, "sigmoid", get_preset(name).config)
