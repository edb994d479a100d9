"""Checkpoints inside something larger and float64 ones, through the commands."""

import json
from pathlib import Path

import numpy as np
import pytest

import vit_flax
from vit_flax.cli.main import main
from vit_flax.convert import read_checkpoint, write_checkpoint
from vit_flax.models.shapes import expected_shapes

SIZES = {"depth": 1, "embed_dim": 16, "num_heads": 2, "image_size": 32, "num_classes": 3}
TOLD = ["--set", "num_heads=2", "--set", "image_size=32", "--layout", "mae"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    from flax.traverse_util import unflatten_dict

    model = vit_flax.create_model("vit_tiny_patch16_224", **SIZES)
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in expected_shapes(model).items()}
    return vit_flax.to_state_dict(model, unflatten_dict(flat, sep="/"), "timm")


def written(path: Path, **parts: dict[str, np.ndarray]) -> str:
    named = {f"{part}.{name}": array for part, inside in parts.items() for name, array in inside.items()}
    write_checkpoint(path, named, {})
    return str(path)


def test_what_is_left_out_is_told(tmp_path, tensors, capsys) -> None:
    path = written(tmp_path / "a.npz", backbone=tensors, decode_head={"weight": np.ones(2)})
    note = "took backbone, left out decode_head (1 tensor)"
    assert main(["inspect", path, *TOLD, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["notes"] == [note]
    assert told.err == f"note: {note}\n"
    to = [str(tmp_path / "b.safetensors"), "--from", "mae", *TOLD[:4], "--json"]
    assert main(["convert", path, *to]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["notes"] == [note]
    assert f"note: {note}" in told.err


def test_the_advice_for_several_is_right(tmp_path, tensors, capsys) -> None:
    other = {name: array + 1 for name, array in tensors.items()}
    path = written(tmp_path / "a.npz", student=tensors, teacher=other)
    assert main(["inspect", path, *TOLD]) == 2
    said = capsys.readouterr().err
    assert "holds several sets of weights (student, teacher); say which with --entry student" in said
    for entry, expected in (("student", tensors), ("teacher", other)):
        target = str(tmp_path / f"{entry}.safetensors")
        assert main(["convert", path, target, "--from", "mae", *TOLD[:4], "--entry", entry]) == 0
        np.testing.assert_array_equal(read_checkpoint(target).read("norm.bias"), expected["norm.bias"])


def test_float64_is_cast_with_a_note_where_a_command_computes(tmp_path, tensors, capsys) -> None:
    from PIL import Image

    wide = {name: array.astype(np.float64) for name, array in tensors.items()}
    write_checkpoint(tmp_path / "wide.safetensors", wide, {})
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "wide.safetensors"), str(tmp_path / "a.png"), *TOLD]) == 0
    assert "note: its tensors are float64 (" in capsys.readouterr().err
    write_checkpoint(tmp_path / "one.safetensors", {**tensors, "pos_embed": wide["pos_embed"]}, {})
    assert main(["predict", str(tmp_path / "one.safetensors"), str(tmp_path / "a.png"), *TOLD]) == 0
    assert "note: in float64 among tensors in float32, and read in float32: pos_embed" in capsys.readouterr().err
    to = [str(tmp_path / "out.safetensors"), "--from", "mae", *TOLD[:4]]
    assert main(["convert", str(tmp_path / "wide.safetensors"), *to]) == 0  # bit for bit, and no note
    assert read_checkpoint(tmp_path / "out.safetensors").read("norm.bias").dtype == np.float64
    assert "note" not in capsys.readouterr().err
