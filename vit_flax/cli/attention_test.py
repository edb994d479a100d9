"""`vit-flax attention` of many images: the weights of each equal those of the image alone."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from vit_flax.cli import attention
from vit_flax.cli.main import main
from vit_flax.config import ViTConfig
from vit_flax.models import build_model
from vit_flax.parity.tolerances import FLOAT32_LOGITS
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.pretrained import save
from vit_flax.train.state import init_params

CONFIG = ViTConfig(image_size=(8, 12), patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and photographs, one of which is none."""
    root = tmp_path_factory.mktemp("place")
    prepared = Preprocessing(image_size=(8, 12), crop_pct=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    save(root / "m", build_model(CONFIG), init_params(jax.random.key(0), CONFIG), preprocessing=prepared)
    rng = np.random.default_rng(0)
    (root / "photos").mkdir()
    for index in range(5):
        Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(root / "photos" / f"{index}.png")
    (root / "photos" / "2.png").write_bytes(b"nothing")
    return root


@pytest.mark.parametrize("target", ["maps", "maps.npz"])
def test_of_a_folder_each_is_as_alone(
    target: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "MOST", 2 * attention._num_bytes(CONFIG, None))  # two at a time
    given = ["attention", str(place / "m"), str(place / "photos"), "-o", str(tmp_path / target), "--json"]
    assert main(given) == 1  # one is left out
    out, err = capsys.readouterr()
    bad = str(place / "photos" / "2.png")
    assert list(json.loads(out)["bad"]) == [bad]
    assert "1 of 5 images cannot be read" in err
    found = np.load(tmp_path / target) if target.endswith("npz") else {
        file.stem: np.load(file) for file in (tmp_path / target).iterdir()
    }  # fmt: skip
    good = sorted(str(file) for file in (place / "photos").iterdir() if str(file) != bad)
    assert [*found["images"]] == good
    assert found["layer_0"].shape == (4, 2, 7, 7)
    for row, image in enumerate(good):
        assert main(["attention", str(place / "m"), image, "-o", str(tmp_path / "one.npz")]) == 0
        alone = np.load(tmp_path / "one.npz")
        for name in ("layer_0", "layer_1"):
            np.testing.assert_allclose(found[name][row], alone[name], **FLOAT32_LOGITS)


def test_of_one_block_and_head(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(place / "photos" / f"{index}.png") for index in (3, 0)]
    asked = ["--layer", "-1", "--head", "1", "-o", str(tmp_path / "a.npz")]
    assert main(["attention", str(place / "m"), *images, *asked]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'a.npz'}: layer_1 2 x 1 x 7 x 7\n"
    assert [*np.load(tmp_path / "a.npz")["images"]] == images
    assert main(["attention", str(place / "m"), *images, "-o", str(tmp_path / "a.png")]) == 2
    assert main(["attention", str(place / "m"), str(place / "photos" / "2.png"), "-o", str(tmp_path / "b")]) == 2
    assert "not a readable image" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.npz"]
