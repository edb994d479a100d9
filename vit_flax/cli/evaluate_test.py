"""evaluate, predict and features on a small random model, against the model itself."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_flax.cli.main import main
from vit_flax.config import ViTConfig
from vit_flax.models import build_model
from vit_flax.parity.tolerances import FLOAT32_LOGITS, FLOAT32_RELATIVE, FLOAT64_RELATIVE
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.pretrained import save

CONFIG = ViTConfig(image_size=(8, 8), patch_size=(4, 4), in_chans=1, embed_dim=16, depth=1, num_heads=2, num_classes=10)
MODEL = build_model(CONFIG)


@pytest.fixture(scope="module")
def params() -> Any:
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture
def checkpoint(params: Any, tmp_path: Path) -> str:
    save(tmp_path / "model.safetensors", MODEL, params)
    return str(tmp_path / "model.safetensors")


def _logits(params: Any, images: np.ndarray, **fields: Any) -> np.ndarray:
    transform = Preprocessing(image_size=(8, 8), **{"mean": (0.5,), "std": (0.5,), **fields})
    prepared = np.stack([transform(image) for image in images])
    return np.asarray(MODEL.apply({"params": params}, prepared))


def test_evaluate_counts_what_the_model_gets_right(
    checkpoint: str, params: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from vit_flax.train.config import DataConfig
    from vit_flax.train.data import open_source

    source: Any = open_source(DataConfig(name="digits"), "test", 1)
    assert main(["evaluate", checkpoint, "--data", "digits", "--mean", "0.2", "--batch-size", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    order = np.argsort(-_logits(params, source.images, mean=(0.2,)), axis=1)
    assert found["count"] == 359
    assert found["top1"] == pytest.approx((order[:, 0] == source.labels).mean(), abs=FLOAT64_RELATIVE)
    assert found["top5"] == pytest.approx((order[:, :5] == source.labels[:, None]).any(1).mean(), abs=FLOAT64_RELATIVE)
    for row in found["classes"]:
        chosen = source.labels == row["label"]
        assert row["count"] == chosen.sum()
        assert row["correct"] == (order[chosen, 0] == row["label"]).sum()
    assert found["transform"]["origin"].startswith("mean given")
    assert main(["evaluate", checkpoint, "--data", "digits"]) == 0
    out, err = capsys.readouterr()
    assert "of 359 images" in out.splitlines()[-1]
    assert "nothing tells how images are normalised" in err


def test_evaluate_leaves_out_and_names_what_it_cannot_read(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / "val" / name).mkdir(parents=True)
        for index in range(5):
            Image.new("L", (9, 12), 20 * index).save(tmp_path / "photos" / "val" / name / f"{index}.png")
    (tmp_path / "photos" / "val" / "b" / "3.png").write_bytes(b"nothing")
    command = ["evaluate", checkpoint, "--data", f"image_folder:{tmp_path / 'photos'}", "--split", "val"]
    assert main([*command, "--json", "--max-bad-share", "0.2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 9
    assert "not a readable image" in found["bad"]["b/3.png"]
    assert main(command) == 2
    assert "1 of 10 images cannot be read, more than data.max_bad_share 0.01" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "digit"], "did you mean 'digits'"),
        (["--data", "fashion_mnist:/nowhere"], "/nowhere: no such folder"),
        (["--data", "digits", "--split", "dev"], "digits has no split 'dev', only train and val and test"),
        (["--data", "digits", "--mean", "0.5,0.5,0.5"], "mean has 3 numbers, the model's images have 1 channels"),
        (["--data", "digits", "--std", "0"], "std must be positive"),
        (["--data", "digits", "--crop-pct", "2"], "crop_pct must be above 0 and at most 1"),
        (["--data", "digits", "--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_bad_input_is_one_line(
    checkpoint: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", checkpoint, *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_predict_and_features(checkpoint: str, params: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 8, 1), np.uint8)
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    beside = {"mean": [0.3], "std": [0.2], "class_names": [f"class {k}" for k in range(10)]}
    (tmp_path / "preprocessing.json").write_text(json.dumps(beside))
    expected = _logits(params, images, mean=(0.3,), std=(0.2,))
    assert main(["predict", checkpoint, *paths, "--top", "2", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [a["guesses"][0]["label"] for a in answers] == expected.argmax(1).tolist()
    assert answers[0]["guesses"][0]["name"] == f"class {expected[0].argmax()}"
    shares = np.exp(expected - expected.max(1, keepdims=True))
    best = (shares / shares.sum(1, keepdims=True)).max(1)
    np.testing.assert_allclose([a["guesses"][0]["probability"] for a in answers], best, rtol=FLOAT32_LOGITS["rtol"])
    assert main(["predict", checkpoint, *paths]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 18
    target = tmp_path / "features.npz"
    assert main(["features", checkpoint, *paths, "-o", str(target)]) == 0
    assert "features 3 x 16" in capsys.readouterr().out
    with np.load(target) as file:
        assert file["images"].tolist() == paths
        head = params["head"]
        np.testing.assert_allclose(file["features"] @ head["kernel"] + head["bias"], expected, **FLOAT32_LOGITS)
    assert main(["features", checkpoint, *paths, "--tokens", "-o", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [3, 5, 16]
    assert main(["features", checkpoint, *paths, "-o", "features.txt"]) == 2
    assert main(["predict", checkpoint, str(tmp_path / "nowhere.png")]) == 2
    assert "nowhere.png: no such file" in capsys.readouterr().err


def test_attention_writes_a_picture(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (30, 20), 90).save(tmp_path / "photo.png")
    target = tmp_path / "map.png"
    assert main(["attention", checkpoint, str(tmp_path / "photo.png"), "-o", str(target)]) == 0
    assert f"wrote {target}" in capsys.readouterr().out
    with Image.open(target) as picture:
        assert (picture.width, picture.height) == (896 + 96, 448)
        seen = np.asarray(picture.convert("L"), np.int64)[:, 448:896]
        assert seen.max() - seen.min() > 100  # however flat the attention is: from its least to its most
    assert main(["attention", checkpoint, str(tmp_path / "nowhere.png"), "-o", str(target)]) == 2
    assert "nowhere.png: no such file" in capsys.readouterr().err


def test_attention_of_a_layer_and_a_head(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, picture, maps = (str(tmp_path / name) for name in ("photo.png", "map.png", "maps.npz"))
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (8, 8)).astype(np.uint8)).save(photo)

    def told(*options: str) -> Any:
        assert main(["attention", checkpoint, photo, *options, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    last, heads = CONFIG.depth - 1, CONFIG.num_heads
    shapes = told("-o", maps)["shapes"]
    assert list(shapes) == [f"layer_{i}" for i in range(CONFIG.depth)]
    with np.load(maps) as found:
        weights = found[f"layer_{last}"]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=FLOAT32_RELATIVE)
    first = CONFIG.num_prefix_tokens
    for options, expected in (
        (("--layer", "-1"), weights.mean(0)[0, first:]),
        (("--layer", str(last), "--head", "-1"), weights[heads - 1, 0, first:]),
    ):
        drawn = np.ravel(told("-o", picture, *options)["attention"])
        np.testing.assert_allclose(drawn, expected / expected.sum(), rtol=FLOAT32_LOGITS["rtol"])
    assert told("-o", maps, "--layer", "0", "--head", "0")["shapes"] == {"layer_0": [1, *weights.shape[1:]]}
    for options, words in (
        (("--layer", "9"), f"no --layer 9: the model has {CONFIG.depth}, numbered 0 to {last}"),
        (("--layer", "0", "--head", "-9"), f"no --head -9: the model has {heads}, numbered 0 to {heads - 1}"),
        (("--head", "0"), "say which with --layer N"),
    ):
        assert main(["attention", checkpoint, photo, "-o", picture, *options]) == 2
        error = capsys.readouterr().err
        assert words in error, error
