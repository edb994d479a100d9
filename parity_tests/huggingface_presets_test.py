"""Presets of Hugging Face's repositories: each has as many parameters as transformers' model of its config.json."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import vit_flax
from parity_tests.peers import import_transformers
from vit_flax.convert import FAMILIES, LAYOUTS, read_config
from vit_flax.models.shapes import expected_shapes
from vit_flax.presets import PRESETS

transformers = import_transformers()

NAMES = [name for name in PRESETS if "/" in name]


def layout_of(name) -> Any:
    """Returns the layout that the repository's files have, the first of Hugging Face's that can hold the model."""
    config = PRESETS[name].config
    family = "mae" if "vit-mae" in name else "ijepa" if "ijepa" in name else ""
    names = [layout for layout in LAYOUTS if layout.startswith(f"huggingface_{family}") and "_memory" not in layout]
    return next(LAYOUTS[layout] for layout in names if not LAYOUTS[layout].refusals(config))


def count(name):
    """Returns the parameters of one block of our model, and of all the rest; where blocks differ, of all."""
    one = {"depth": 1} if PRESETS[name].config.position.repeats else {}
    shapes = expected_shapes(vit_flax.create_model(name, **one))
    block = sum(math.prod(shape) for path, shape in shapes.items() if "blocks_0/" in path)
    return block, sum(map(math.prod, shapes.values())) - block


@pytest.mark.parametrize("name", NAMES)
def test_has_as_many_parameters_as_transformers_model(name):
    config = PRESETS[name].config
    file = layout_of(name).config_file(config.replace(depth=1) if config.position.repeats else config)
    kind = getattr(transformers, file["architectures"][0])
    with torch.device("meta"):
        theirs = kind(kind.config_class(**{key: value for key, value in file.items() if key != "architectures"}))
    # ViTModel has a pooler even where none was published
    left_out = () if config.representation_size else ("pooler.",)
    expected = {n: p.numel() for n, p in theirs.named_parameters() if not any(part in n for part in left_out)}
    blocks = sum(number for n, number in expected.items() if "layer.0." in n or "layers.0." in n or "blocks.0." in n)
    assert count(name) == (blocks, sum(expected.values()) - blocks)


@pytest.mark.parametrize("name", NAMES)
def test_its_config_file_says_the_same(name):
    config = PRESETS[name].config
    layout = layout_of(name)
    beside = read_config(layout.config_file(config), FAMILIES, name)
    assert beside is not None
    assert beside.layout == layout.name
    for field, value in beside.fields.items():
        assert getattr(config, field) == pytest.approx(value), field


# as their papers and cards have them
MILLIONS = {
    "google/vit-base-patch16-224": 87,
    "facebook/deit-tiny-distilled-patch16-224": 6,
    "facebook/dinov2-small": 22,
    "facebook/dinov2-base": 87,
    "facebook/dinov2-large": 304,
    "facebook/dinov2-giant": 1136,
    "facebook/dinov3-vits16-pretrain-lvd1689m": 22,
    "facebook/dinov3-vits16plus-pretrain-lvd1689m": 29,
    "facebook/dinov3-vitb16-pretrain-lvd1689m": 86,
    "facebook/dinov3-vitl16-pretrain-lvd1689m": 303,
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": 841,
    "facebook/dinov3-vit7b16-pretrain-lvd1689m": 6716,
    "openai/clip-vit-large-patch14": 304,
    "google/siglip-so400m-patch14-384": 428,
    "facebook/vit-mae-huge": 631,
    "facebook/ijepa_vitg16_22k": 1011,
}


def test_the_published_sizes():
    found = {}
    for name in MILLIONS:
        block, rest = count(name)
        found[name] = round((block * PRESETS[name].config.depth + rest) / 1e6)
    assert found == MILLIONS


def test_every_source_is_its_name():
    assert all(PRESETS[name].source == name for name in NAMES)
    assert len(NAMES) >= 70
