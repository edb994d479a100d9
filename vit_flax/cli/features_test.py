"""`vit-flax features`: outputs of whole models and of layers, to files and folders, and refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from vit_flax.cli import progress
from vit_flax.cli.main import main
from vit_flax.config import ViTConfig
from vit_flax.models import build_model
from vit_flax.parity.tolerances import FLOAT32_LOGITS
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.pretrained import load, save
from vit_flax.train.state import init_params

CONFIG = ViTConfig(
    image_size=(8, 12), patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=2, reg_tokens=2,
    no_embed_class=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and photographs, one of which is none."""
    root = tmp_path_factory.mktemp("place")
    prepared = Preprocessing(image_size=(8, 12), crop_pct=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    save(root / "m", build_model(CONFIG), init_params(jax.random.key(0), CONFIG), preprocessing=prepared)
    rng = np.random.default_rng(0)
    for index in range(5):
        folder = root / "photos" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(folder / f"{index}.png")
    (root / "photos" / "notes.txt").write_text("no image")
    (root / "bad.png").write_bytes(b"nothing")
    (root / "none").mkdir()
    return root


def _expected(place: Path, paths: list[str], **asked: Any) -> Any:
    model, params = load(place / "m")
    pixels = np.stack([np.asarray(Image.open(path), np.float32) for path in paths])
    return model.apply({"params": params}, (pixels / 255 - 0.5) / 0.25, **asked, method="forward_intermediates")[1]


def test_layers_of_a_folder_of_photographs(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["features", str(place / "m"), str(place / "photos"), str(place / "bad.png"), "--batch-size", "2"]
    target = tmp_path / "out.npz"
    assert main([*given, "--layers=0,-1", "--grid", "--norm", "--prefix-tokens", "-o", str(target)]) == 1
    out, err = capsys.readouterr()
    assert out == (
        f"wrote {target}: layer_0 5 x 2 x 3 x 16, layer_0_prefix 5 x 3 x 16, layer_2 5 x 2 x 3 x 16, "
        "layer_2_prefix 5 x 3 x 16\n"
    )
    assert "bad.png" in err
    with np.load(target) as file:
        paths = file["images"].tolist()
        inside = [str(path.relative_to(place / "photos")) for path in map(Path, paths)]
        assert inside == ["a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png"]
        expected = _expected(place, paths, indices=[0, 2], norm=True, return_prefix_tokens=True)
        arrays = [file[name] for name in ("layer_0", "layer_0_prefix", "layer_2", "layer_2_prefix")]
    for array, other in zip(arrays, jax.tree.leaves(expected), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, other, **FLOAT32_LOGITS)
    folder = tmp_path / "folder"
    assert main([*given[:3], "--layers", "last1", "-o", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shapes"] == {"layer_2": [5, 6, 16]}
    mapped = np.load(folder / "layer_2.npy", mmap_mode="r")
    expected = _expected(place, paths, indices=1, output_fmt="NLC")
    np.testing.assert_allclose(mapped, expected[0], **FLOAT32_LOGITS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out.npz"]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("m photos --layers 3 -o x.npz", "--layers 3: the model has 3 blocks, numbered 0 to 2"),
        ("m photos --layers last4 -o x.npz", "--layers last4: the model has 3 blocks"),
        ("m photos --layers two -o x.npz", "numbers with commas between them (--layers 2,5,8,11), last4 or all"),
        pytest.param(
            "m photos --layers -2,-1 -o x.npz",
            "joined to it: --layers=-1",
            marks=pytest.mark.skipif(sys.version_info >= (3, 14), reason="argparse takes it for a value since 3.14"),
        ),
        ("m photos --grid -o x.npz", "say which with --layers 2,5,8,11"),
        ("m photos --layers 1 --tokens -o x.npz", "not allowed with argument"),
        ("m none -o x.npz", "none: has no image files (.jpg"),
        ("m photos -o x.txt", "must end in .npz, or be the name of a new folder"),
        ("m photos -o photos", "is there already"),
        ("m bad.png -o x.npz", "bad.png: not a readable image"),
        ("nowhere photos -o no/x.npz", "its folder does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    typed: str, told: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    try:
        status: Any = main(["features", *typed.split()])
    except SystemExit as left:
        status = left.code
    err = capsys.readouterr().err.splitlines()
    assert status == 2
    assert told in err[-1]
    assert [line for line in err if not line.startswith("...")] == err[-1:]
    assert sorted(place.rglob("*")) == before


def test_long_work_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress(1000) as quick:
        quick.advance(1000)
    assert capsys.readouterr().err == ""
    with progress.Progress(1000) as slow:
        for _ in range(4):
            now[0] += 20
            slow.advance(200)
    assert (
        capsys.readouterr().err == "... 400/1,000 images  10.0/s  1:00 left\n... 800/1,000 images  10.0/s  0:20 left\n"
    )
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress.Progress(10) as shown:
        now[0] += 2
        shown.advance(5)
    assert "[############............] 5/10 images  2.5/s  0:02 left" in capsys.readouterr().err
