"""A checkpoint is read once, and every command takes all options of a checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import vit_flax
from vit_flax import reading
from vit_flax.cli.main import main
from vit_flax.parity.tolerances import FLOAT32_LIBRARIES, FLOAT32_SEEN

SMALL: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading")
    model = vit_flax.create_model("vit_base_patch16_224", **SMALL, num_classes=3)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
    vit_flax.save(path / "a.safetensors", model, params)
    Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)).save(path / "a.png")
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the steps of a reading."""
    calls: Counter[str] = Counter()
    for name in ("read_beside", "find_layout", "resolve_config", "find_resizes", "expected_shapes", "plan"):
        kept = getattr(reading, name)

        def counted(*arguments: Any, kept: Any = kept, name: str = name) -> Any:
            calls[name] += 1
            return kept(*arguments)

        monkeypatch.setattr(reading, name, counted)
    return calls


def test_nothing_is_found_out_twice(folder: Path, calls: Counter[str]) -> None:
    vit_flax.load(folder / "a.safetensors", image_size=48)
    assert set(calls.values()) == {1}
    assert len(calls) == 6


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_nor_by_a_command(command: str, folder: Path, calls: Counter[str]) -> None:
    asked = [command, str(folder / "a.safetensors"), *(part.format(folder) for part in COMMANDS[command])]
    assert main([*asked, "--set", "image_size=48"]) == 0
    assert set(calls.values()) == {1}
    assert len(calls) == 6


COMMANDS = {
    "inspect": (), "convert": ("{}/b.safetensors",), "compare": ("--model", "vit_base_patch16_224"),
    "predict": ("{}/a.png",), "features": ("{}/a.png", "-o", "{}/f.npz"), "attention": ("{}/a.png", "-o", "{}/b.png"),
    "evaluate": ("--data", "digits"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_every_wish(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [command, str(folder / "a.safetensors"), *(part.format(folder) for part in COMMANDS[command])]
    assert main([*asked, "--set", "image_size=48", "--resample", "cubic"]) == 2
    assert "unknown resampling mode 'cubic'" in capsys.readouterr().err
    assert main([*asked, "--set", "image_size=48", "--source-grid", "3x5"]) == 2
    assert "source_grid=(3, 5) has 15 patches; the position table has 16" in capsys.readouterr().err


def test_the_mode_that_is_asked_for_is_the_one_that_is_taken(folder: Path, calls: Counter[str]) -> None:
    found = []
    for mode in ("bilinear", "bicubic"):
        asked = ["features", str(folder / "a.safetensors"), str(folder / "a.png"), "-o", str(folder / f"{mode}.npz")]
        assert main([*asked, "--set", "image_size=48", "--resample", mode]) == 0
        found.append(np.load(folder / f"{mode}.npz")["features"])
    assert np.abs(found[0] - found[1]).max() > FLOAT32_SEEN
    assert set(calls.values()) == {2}  # once a command


TOLD: dict[str, Any] = {
    "num_heads": 2,
    "image_size": 32,
    "norm_eps": 1e-6,
    "activation": "gelu",
    "global_pool": "token",
}


@pytest.mark.parametrize("asked", ["dino", "deit3", "huggingface_vit", "torchvision", "flax"])
def test_a_layout_that_is_not_the_names_is_told_which_is(asked: str, folder: Path) -> None:
    model, params = vit_flax.load(folder / "a.safetensors")
    tensors = vit_flax.to_state_dict(model, params, "timm")
    with pytest.raises(
        vit_flax.ConversionError, match=r"names are those of layout 'timm' \(has .*pass `layout='timm'`"
    ):
        vit_flax.from_state_dict(tensors, layout=asked, **TOLD)
    assert vit_flax.from_state_dict(tensors, layout="timm", **TOLD)[0].config.num_classes == 3


def test_a_layout_that_is_the_names_is_left_alone(folder: Path) -> None:
    model, params = vit_flax.load(folder / "a.safetensors")
    tensors = vit_flax.to_state_dict(model, params, "timm")
    cases: list[tuple[str, dict[str, Any]]] = [("mae", {}), ("deit", {"num_heads": 2})]
    for asked, told in cases:
        with pytest.raises(vit_flax.ConversionError, match="the tensors do not tell") as error:
            vit_flax.from_state_dict(tensors, layout=asked, **told)
        assert "the names are" not in str(error.value)


def test_what_a_size_that_does_not_divide_says_works(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"height 37 is not divisible by the patch size 8 \(`crop_to_patches=True`"):
        vit_flax.load(folder / "a.safetensors", image_size=37)
    model, params = vit_flax.load(folder / "a.safetensors", image_size=37, crop_to_patches=True)
    whole = vit_flax.load(folder / "a.safetensors", image_size=32)
    image = np.random.default_rng(0).random((1, 37, 37, 3), np.float32)
    found = model.apply({"params": params}, image)
    expected = whole[0].apply({"params": whole[1]}, image[:, :32, :32])
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), **FLOAT32_LIBRARIES)


def test_a_config_that_cannot_be_followed_is_told_before_names_that_match_no_layout(folder: Path) -> None:
    model, params = vit_flax.load(folder / "a.safetensors", num_classes=0)
    names = {"layernorm_before": "norm1", "layernorm_after": "norm2"}  # the rest is ViT's: no layout by themselves
    tensors = vit_flax.to_state_dict(model, params, "huggingface_vit")
    for old, new in names.items():
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    with pytest.raises(vit_flax.ConversionError, match="match no known layout"):
        vit_flax.from_state_dict(tensors)
    for config in ({"model_type": "pixio", "odd_attribute": 48}, {"model_type": "vjepa9", "hidden_size": 8}):
        with pytest.raises(vit_flax.ConversionError, match=r"its config cannot be followed: .*(odd_attribute|vjepa9)"):
            vit_flax.from_state_dict(tensors, config=config)
