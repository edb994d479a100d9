"""`vit-flax compare CHECKPOINT` against transformers and timm: it must agree, and be able to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.peers import import_timm, import_transformers
from parity_tests.random_weights import randomise
from vit_flax.cli.main import main
from vit_flax.reading import Reading

transformers, timm = import_transformers(), import_timm()

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
SIZES = {**SHAPE, "intermediate_size": 48}
KINDS = {
    "ViTForImageClassification": {**SIZES, "num_labels": 3},
    "ViTMAEModel": SIZES,
    "Dinov2Model": SHAPE,
    "CLIPVisionModelWithProjection": {**SIZES, "projection_dim": 5},
    "SiglipVisionModel": SIZES,
}


@pytest.fixture
def dinov2(tmp_path):
    return save("Dinov2Model", tmp_path)


def save(kind, folder):
    kind = getattr(transformers, kind)
    randomise(kind(kind.config_class(**KINDS[kind.__name__]))).float().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_agrees(kind, tmp_path, capsys):
    assert main(["compare", str(save(kind, tmp_path)), "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["agrees"] is True
    assert len(report["sections"]["components"]) > 12
    assert {row["name"] for row in report["sections"]["outputs"]} <= {"features", "output"}


def test_a_clip_tower_beside_its_text_tower(tmp_path):
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.CLIPConfig(
        vision_config=SIZES, text_config={**text, "vocab_size": 40, **tokens}, projection_dim=5
    )
    randomise(transformers.CLIPModel(config)).save_pretrained(tmp_path)
    assert main(["compare", str(tmp_path)]) == 0


def test_the_table_is_printed_and_a_wrong_epsilon_differs(dinov2, capsys):
    assert main(["compare", str(dinov2)]) == 0
    out = capsys.readouterr().out
    assert "against transformers' Dinov2Model" in out
    assert "encoder.layer.1.mlp.fc2" in out
    assert "The two models are the same" in out
    assert main(["compare", str(dinov2), "--set", "norm_eps=1e-3"]) == 1
    assert "First diverging component" in capsys.readouterr().out


def test_a_changed_weight_differs(dinov2, monkeypatch):
    build = Reading.build

    def wrong(self):
        model, params = build(self)
        params["blocks_1"]["ls1"]["gamma"] *= 1 + 1e-5
        return model, params

    monkeypatch.setattr(Reading, "build", wrong)
    assert main(["compare", str(dinov2)]) == 1


def test_a_weight_that_the_library_misses_is_told(tmp_path, capsys):
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, qkv_bias=False)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    told = ["--config", "vit_tiny_patch16_224", "--set", "depth=1", "--set", "image_size=32", "--set", "qkv_bias=False"]
    assert main(["compare", str(tmp_path / "a.pth"), *told]) == 1
    assert "DIFFERS  timm finds a place" in capsys.readouterr().out


def test_timm_agrees_and_can_differ(tmp_path, capsys):
    arguments = {"depth": 2, "img_size": 32, "num_classes": 3}
    model = randomise(timm.create_model("deit_tiny_distilled_patch16_224", **arguments)).float()
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    told = ["--set", "depth=2", "--set", "image_size=32", "--set", "num_classes=3"]
    deit = ["compare", str(tmp_path / "a.pth"), *told, "--config", "deit_tiny_distilled_patch16_224"]
    assert main(deit) == 0
    assert "timm's deit_tiny_distilled_patch16_224" in capsys.readouterr().out
    assert main([*deit, "--set", "activation=gelu_tanh"]) == 1
    told += ["--set", "num_heads=3"]  # all fields told, and no preset
    assert main(["compare", str(tmp_path / "a.pth"), *told]) == 2
    assert "pass --model NAME" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a.pth"), *told, "--model", "deit_tiny_distilled_patch16_224"]) == 0


def test_what_cannot_be_compared_is_said(tmp_path, capsys, monkeypatch, dinov2):
    assert main(["compare", "--model", "vit_tiny_patch16_224"]) == 2
    assert main(["compare", str(dinov2), "--html", "x.html"]) == 2
    np.savez(tmp_path / "empty.npz", a=np.ones(2))
    assert main(["compare", str(tmp_path / "empty.npz")]) == 2
    model = vit_flax.create_model("vit_tiny_patch16_224", depth=1, image_size=32, num_classes=2)
    params = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    vit_flax.save(tmp_path / "google.npz", model, params, layout="google_npz")
    capsys.readouterr()
    known = ["--config", "vit_tiny_patch16_224"]
    for field in ("depth=1", "image_size=32", "num_classes=2"):
        known += ["--set", field]
    assert main(["compare", str(tmp_path / "google.npz"), *known]) == 2
    assert "belongs to neither timm nor transformers" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "google.npz"), *known, "--against", "timm"]) == 0
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["compare", str(dinov2)]) == 2
    assert "pip install transformers" in capsys.readouterr().err


def test_a_config_settles_whose_names_these_are(tmp_path):
    sizes: dict[str, Any] = {"depth": 1, "image_size": 32, "num_classes": 3}
    theirs = randomise(timm.create_model("deit3_small_patch16_224", depth=1, img_size=32, num_classes=3)).float()
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config="deit3_small_patch16_224", **sizes)
    tensors = vit_flax.to_state_dict(model, params, "deit3")  # Facebook's names, which RoPE-ViT has too
    torch.save({name: torch.tensor(array) for name, array in tensors.items()}, tmp_path / "a.pth")
    told = [part for name, value in sizes.items() for part in ("--set", f"{name}={value}")]
    deit3 = ["compare", str(tmp_path / "a.pth"), *told, "--against", "timm"]
    assert main([*deit3, "--model", "deit3_small_patch16_224"]) == 2  # nothing settles it
    assert main([*deit3, "--config", "deit3_small_patch16_224"]) == 0


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_process_of_its_own_imports_the_library(library, tmp_path):
    """As `make setup` installs it: torchvision's wheel may be of another build than torch."""
    told = ["--set", "depth=1", "--set", "image_size=32", "--set", "num_classes=2"]
    if library == "timm":
        model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=2)
        torch.save(model.state_dict(), tmp_path / "a.pth")
        arguments = [str(tmp_path / "a.pth"), "--config", "vit_tiny_patch16_224", *told]
    else:
        arguments = [str(save("Dinov2Model", tmp_path))]
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, "-m", "vit_flax", "compare", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "The two models are the same" in done.stdout
    assert done.stderr == ""


def test_a_timm_checkpoint_of_another_size_is_told_converted_and_compared(tmp_path, capsys):
    module = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    source, target = str(tmp_path / "small.pth"), str(tmp_path / "folder")
    torch.save(randomise(module).state_dict(), source)
    command = ["compare", source, "--against", "timm", "--config", "vit_tiny_patch16_224"]
    assert main([*command, "--set", "image_size=48"]) == 2
    assert "resize them with vit-flax convert first" in capsys.readouterr().err
    assert main(["convert", source, target, "--config", "vit_tiny_patch16_224"]) == 0
    assert "pos_embed is resized 2x2 -> 14x14" in capsys.readouterr().err
    assert main(["convert", source, target + "48", "--config", "vit_tiny_patch16_224", "--set", "image_size=48"]) == 0
    assert "resized" not in capsys.readouterr().err  # who names the size has asked for it
    assert main(["compare", target + "48", "--against", "timm"]) == 0  # by the name in its config.json
    assert "149 of 149 rows" in capsys.readouterr().out
