"""DINOv2 with registers, between layouts with a row of positions for its class token and those without one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vit_flax
from parity_tests.agreement import assert_agrees, load_strictly, run_flax, run_torch
from parity_tests.peers import import_timm, import_transformers
from parity_tests.random_weights import random_images, randomise
from vit_flax.cli.main import main
from vit_flax.convert import read_checkpoint

IMAGES = random_images((32, 32))
SIZES: dict[str, Any] = {"embed_dim": 32, "depth": 1, "num_heads": 2}


def _theirs(registers: int = 4) -> Any:
    transformers = import_transformers()
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    sizes |= {"patch_size": 16, "mlp_ratio": 4}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        return randomise(transformers.Dinov2WithRegistersModel(config)).double().eval()
    return randomise(transformers.Dinov2Model(transformers.Dinov2Config(**sizes))).double().eval()


def _timms(name: str) -> Any:
    return import_timm().create_model(name, img_size=32, patch_size=16, num_classes=0, **SIZES).double().eval()


@pytest.mark.parametrize(("name", "registers"), [("vit_small_patch14_reg4_dinov2", 4), ("vit_small_patch14_dinov2", 0)])
def test_to_timm_and_back(name: str, registers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = _theirs(registers)
    theirs.save_pretrained(tmp_path / "a")
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b.safetensors"), "--layout", "timm"]) == 0
    told = capsys.readouterr().err
    assert "mask_token is left out" in told
    assert ("position is added to the class token" in told) == (registers > 0)
    timms = _timms(name)
    load_strictly(timms, {n: read_checkpoint(tmp_path / "b.safetensors").read(n) for n in timms.state_dict()})
    expected = run_torch(lambda x: theirs(pixel_values=x).last_hidden_state, IMAGES)
    assert_agrees(run_torch(timms.forward_features, IMAGES), expected)
    back = ["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c"), "--layout", "huggingface_dinov2"]
    assert main(back) == 0
    assert ("position is zero" in capsys.readouterr().err) == (registers > 0)
    again, report = type(theirs).from_pretrained(tmp_path / "c", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_agrees(run_torch(lambda x: again.double().eval()(pixel_values=x).last_hidden_state, IMAGES), expected)


def test_in_python_it_is_asked_for() -> None:
    model, params = vit_flax.from_state_dict(_theirs().state_dict(), config=_theirs().config.to_dict())
    way = r"no_embed_reg=True .*; `vit_flax\.fit_layout\(model, params, 'timm'\)` gives the same model as it has it"
    with pytest.raises(vit_flax.ConversionError, match=way):
        vit_flax.to_state_dict(model, params, "timm")
    fitted, changed, notes = vit_flax.fit_layout(model, params, "timm")
    assert len(notes) == 2
    assert vit_flax.to_state_dict(fitted, changed, "timm")["pos_embed"].shape == (1, 4, 32)
    images = np.asarray(IMAGES)
    assert_agrees(run_flax(fitted, changed, images, "features"), run_flax(model, params, images, "features"))
    assert vit_flax.fit_layout(fitted, changed, "timm") == (fitted, changed, [])
    assert vit_flax.fit_layout(model, params, "torchvision")[2] == []  # which cannot hold it in any way
    assert params["pos_embed"].shape == (1, 5, 32)  # the caller's own stay as they are
