"""Files of earlier versions load with their meaning, and their runs resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import vit_flax
from vit_flax.cli.main import main
from vit_flax.parity.tolerances import FLOAT32_LIBRARIES

STORED = Path(__file__).parent / "stored"
FILES = sorted(STORED.glob("*/*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_stored_model_gives_its_outputs(path: Path) -> None:
    model, params = vit_flax.load(path)
    config = model.config
    images = np.random.default_rng(0).standard_normal((2, *config.image_size, config.in_chans)).astype(np.float32)
    outputs: Any = jax.jit(model.apply)({"params": params}, images)
    expected = json.loads((path.parent / "outputs.json").read_text("utf-8"))[path.stem]
    np.testing.assert_allclose(outputs, expected, **FLOAT32_LIBRARIES)  # float32 on another processor


@pytest.mark.parametrize("version", ["v0.1"])
def test_a_stored_run_goes_on(version: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(STORED / version / "run", tmp_path / "run")
    sets = ("epochs=2", "model.depth=1", "model.embed_dim=8", "model.num_heads=2")
    asked = ["train", "digits", *(part for value in sets for part in ("--set", value))]
    assert main([*asked, "--out", str(tmp_path / "run")]) == 0
    printed = "".join(capfd.readouterr())
    assert "22" in printed
    steps = [json.loads(line).get("step") for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    assert steps[-1] == 44
    model, params = vit_flax.load(tmp_path / "run" / "final")
    assert model.config.depth == 1
    assert params["blocks_0"]["mlp"]["fc1"]["kernel"].shape == (8, 16)
