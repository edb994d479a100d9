"""Recipes that start from a checkpoint: fields from a preset, and fields from the checkpoint itself."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_flax.cli.main import main
from vit_flax.cli.options import assignment
from vit_flax.cli.train import build_config
from vit_flax.config import ViTConfig
from vit_flax.convert import write_checkpoint
from vit_flax.models import build_model
from vit_flax.presets import PRESETS
from vit_flax.presets.preset import Preset
from vit_flax.pretrained import save, to_state_dict
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
    with pytest.raises(ValueError, match=r"do not tell num_heads.*pass `num_heads=N`"):
        build_config(recipe, changes, None)


def test_a_file_that_tells_little_is_told_as_its_error_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_model(CONFIG)
    params: Any = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))["params"]
    tensors = to_state_dict(model, params, "timm")
    two = {f"{name}.{key}": value + (name == "teacher") for name in ("student", "teacher")
           for key, value in tensors.items()}  # fmt: skip
    file = str(tmp_path / "two.npz")
    write_checkpoint(file, two, {})
    typed = ["train", "finetune", "--set", f"checkpoint={file}", "--set", "folder=", "--set", "data=digits"]

    def said() -> str:
        assert main([*typed, "--out", str(tmp_path / "run")]) == 2
        return capsys.readouterr().err

    assert "say which with --set entry=student" in said()
    typed += ["--set", "entry=teacher"]
    assert "pass --set model.num_heads=N, --set model.image_size=HEIGHT,WIDTH" in said()
    told = {"num_heads": 4, "image_size": "8,8", "norm_eps": 1e-6, "activation": "gelu", "global_pool": "token"}
    assert "or --set config= with a preset's name" in said()
    typed += [word for name, value in told.items() for word in ("--set", f"model.{name}={value}")]
    settings = dict(assignment(word) for word in typed[3::2])
    config = build_config("finetune", settings, None)
    found = initial_params(config)
    np.testing.assert_array_equal(found["cls_token"], params["cls_token"] + 1)
    assert (config.model.num_heads, config.init_entry, config.export_layout) == (4, "teacher", "timm")


def test_a_layout_without_a_classifier_is_read_and_another_written(tmp_path: Path) -> None:
    model = build_model(CONFIG.replace(num_classes=0))
    params: Any = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))["params"]
    save(tmp_path / "weights.npz", model, params, "dino")
    changes = {"checkpoint": str(tmp_path / "weights.npz"), "folder": "", "data": "digits", "layout": "dino"}
    config = build_config("finetune", {**changes, "model.num_heads": 4, "model.image_size": 8}, None)
    assert (config.init_layout, config.export_layout) == ("dino", "timm")
