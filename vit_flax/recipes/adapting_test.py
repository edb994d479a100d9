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
from vit_flax.convert import ConversionError, layout_to_write, write_checkpoint
from vit_flax.models import build_model
from vit_flax.presets import PRESETS, get_preset
from vit_flax.presets.preset import Preset
from vit_flax.pretrained import load, save, to_state_dict
from vit_flax.train.resuming import check_same_run
from vit_flax.train.state import init_params
from vit_flax.train.weights import check_exportable, export, initial_params

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
    changes |= {"model.num_heads": 4, "model.image_size": 8}
    config = build_config("finetune", changes, None)
    assert (config.init_layout, config.export_layout) == ("dino", "timm")
    # what was written is no longer in that layout: how the run's refusal says to go on from it
    trained = init_params(jax.random.key(2), config.model)
    export(tmp_path / "run" / "final", config.model, trained, config.export_layout)
    run = config.replace(out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="holds another run") as error:
        check_same_run(run, run.replace(seed=1))
    advice = [word for word in str(error.value).split("these weights also ")[1].split() if "=" in word]
    assert advice == [f"init_from={tmp_path / 'run'}/final", "init_layout=None"]
    further = build_config("finetune", {**changes, **dict(assignment(word) for word in advice)}, None)
    np.testing.assert_array_equal(initial_params(further)["head"]["kernel"], trained["head"]["kernel"])


def test_own_parameters_are_told_by_the_file_of_their_config(tmp_path: Path) -> None:
    model = build_model(CONFIG)
    params: Any = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))["params"]
    save(tmp_path / "own.npz", model, params, "flax")
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "own").mkdir()
    (tmp_path / "own.npz").rename(tmp_path / "own" / "own.npz")  # alone
    changes = {"checkpoint": str(tmp_path / "own" / "own.npz"), "folder": "", "data": "digits"}
    with pytest.raises(ConversionError, match=r"pass `config=CONFIG`, the model's config or a preset's name"):
        build_config("finetune", changes, None)
    config = build_config("finetune", {**changes, "config": str(tmp_path / "config.json")}, None)
    assert config.model == CONFIG.replace(num_classes=10)
    found = initial_params(config)
    np.testing.assert_array_equal(found["cls_token"], params["cls_token"])
    with pytest.raises(ConversionError, match=r"nowhere\.json: no such file"):
        build_config("finetune", {**changes, "config": "nowhere.json"}, None)


def test_a_grid_that_only_a_conversion_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = build_model(CONFIG.replace(image_size=(8, 20)))
    params: Any = jax.jit(wide.init)(jax.random.key(1), jnp.zeros((1, 8, 20, 1)))["params"]
    save(tmp_path / "wide.npz", wide, params, "timm")  # of 2 x 5 patches, which no square says
    told = {"num_heads": 4, "image_size": 8, "norm_eps": 1e-6, "activation": "gelu", "global_pool": "token"}
    words = [word for name, value in told.items() for word in ("--set", f"{name}={value}")]
    models = [f"model.{word}" if "=" in word else word for word in words]
    own = ["--set", "folder=", "--set", "data=digits", "--set", f"checkpoint={tmp_path / 'wide.npz'}"]
    assert main(["train", "finetune", *own, *models, "--out", str(tmp_path / "run")]) == 2
    assert "pass vit-flax convert FILE NEW --source-grid HEIGHTxWIDTH" in capsys.readouterr().err
    files = [str(tmp_path / name) for name in ("wide.npz", "new.safetensors")]
    assert main(["convert", *files, "--source-grid", "2x5", *words]) == 0
    config = build_config("finetune", {"checkpoint": files[1], "folder": "", "data": "digits"}, None)
    assert initial_params(config)["pos_embed"].shape == (1, 5, 16)


def test_a_model_that_no_other_library_classifies_with_is_written_under_our_own_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mlcd = get_preset("DeepGlint-AI/mlcd-vit-bigG-patch14-336").config
    config = mlcd.replace(image_size=(8, 8), patch_size=(4, 4), in_chans=1, embed_dim=16, depth=1, num_heads=2,
                          mlp_ratio=2.0)  # fmt: skip
    params: Any = jax.jit(build_model(config).init)(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))["params"]
    save(tmp_path / "weights", build_model(config), params, "huggingface_mlcd")
    changes = {"checkpoint": str(tmp_path / "weights"), "folder": "", "data": "digits"}
    found = build_config("finetune", changes, None)
    assert (found.model.num_classes, found.export_layout) == (10, "flax_rope")
    assert "written as this library's own parameters (layout flax_rope)" in caplog.text
    check_exportable(found)
    model = build_model(found.model)
    export(tmp_path / "final", found.model, init_params(jax.random.key(0), found.model), found.export_layout)
    assert load(tmp_path / "final")[0].config == model.config
    with pytest.raises(ConversionError, match=r"no layout of another library.*; flax_rope \(this library's own\) can"):
        check_exportable(found.replace(export_layout=None))


def test_a_layout_that_cannot_be_written_says_which_can() -> None:
    with pytest.raises(ConversionError) as error:
        layout_to_write(CONFIG, "dino")
    assert "num_classes=21 (it holds 0); timm, deit, " in str(error.value)
    named = str(error.value).split("; ")[-1].removesuffix(" can").replace(" (this library's own)", "").split(", ")
    assert all(layout_to_write(CONFIG, name) for name in named)
