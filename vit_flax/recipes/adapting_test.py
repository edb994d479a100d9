"""Recipes that begin with a checkpoint: what a preset tells of it, and what the checkpoint tells itself."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_flax.cli.train import build_config
from vit_flax.config import ViTConfig
from vit_flax.models import build_model
from vit_flax.presets import PRESETS
from vit_flax.presets.preset import Preset
from vit_flax.pretrained import save
from vit_flax.train.weights import initial_params

# in timm's layout the tensors tell everything but num_heads
CONFIG = ViTConfig(image_size=(8, 8), patch_size=(4, 4), in_chans=1, embed_dim=16, depth=1, num_heads=4, num_classes=21)


@pytest.mark.parametrize(("recipe", "classes"), [("finetune", 7), ("linear_probe", 0)])
def test_a_preset_tells_all_but_the_head(
    recipe: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", Preset(config=CONFIG))
    model = build_model(CONFIG.replace(num_classes=classes))
    params: Any = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))["params"]
    save(tmp_path / "weights.npz", model, params, "timm")  # a file without a config
    changes = {"checkpoint": str(tmp_path / "weights.npz"), "folder": "", "data": "digits", "layout": "timm"}
    config = build_config(recipe, {**changes, "config": "tiny"}, str(tmp_path / "run"))
    assert config.model == CONFIG.replace(num_classes=10)
    found = initial_params(config)
    assert found.pop("head")["kernel"].shape == (16, 10)
    trunk = {name: value for name, value in params.items() if name != "head"}
    jax.tree.map(np.testing.assert_array_equal, found, trunk)
    with pytest.raises(ValueError, match=r"do not tell num_heads.*to a recipe: --set config=PRESET"):
        build_config(recipe, changes, None)
