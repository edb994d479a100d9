"""`vit-flax evaluate` matches the labels of folders with classes by name."""

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
from vit_flax.preprocessing.label_matching import match_labels
from vit_flax.preprocessing.labels import imagenet_names, is_imagenet, read_labels
from vit_flax.pretrained import save
from vit_flax.train.state import init_params

CONFIG = ViTConfig(image_size=(8, 8), patch_size=(4, 4), in_chans=1, embed_dim=16, depth=1, num_heads=2, num_classes=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that always predicts b, the second of its three classes."""
    model = build_model(CONFIG)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    params: Any = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    params["head"]["bias"] = jnp.asarray([0.0, 1.0, 0.5])
    path = tmp_path_factory.mktemp("model") / "model"
    save(path, model, params)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """Makes test/NAME with so many images for every name."""

    def make(**counts: int) -> str:
        for name, count in counts.items():
            (tmp_path / "data" / "test" / name).mkdir(parents=True)
            for index in range(count):
                Image.new("L", (8, 8), 9 * index).save(tmp_path / "data" / "test" / name / f"{index}.png")
        return f"image_folder:{tmp_path / 'data'}"

    return make


def _evaluate(checkpoint: Path, data: str, capsys: Any, *more: str) -> dict[str, Any]:
    assert main(["evaluate", str(checkpoint), "--data", data, "--json", "--batch-size", "4", *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(params=["preprocessing.json", "timm", "huggingface", "labels"])
def named(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """The checkpoint, and what names its classes a, b, c: a file beside it or an option."""
    names, more = ["a", "b", "c"], []
    for file in checkpoint.iterdir():
        if file.name not in ("model.safetensors",):
            file.unlink()
    if request.param == "preprocessing.json":
        (checkpoint / "preprocessing.json").write_text(json.dumps({"mean": [0.5], "std": [0.5], "class_names": names}))
    elif request.param == "timm":
        cfg = {"mean": [0.5], "std": [0.5], "label_names": {str(i): name for i, name in enumerate(names)}}
        (checkpoint / "config.json").write_text(json.dumps({"architecture": "vit_tiny", "pretrained_cfg": cfg}))
    elif request.param == "huggingface":
        told = {"model_type": "vit", "id2label": {str(i): name for i, name in enumerate(names)}}
        (checkpoint / "config.json").write_text(json.dumps(told))
    else:
        (tmp_path / "names.txt").write_text("a\nb\nc\n")
        more = ["--labels", str(tmp_path / "names.txt")]
    return checkpoint, more


def test_labels_are_matched_by_name(named: Any, folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, more = named
    found = _evaluate(checkpoint, folder(b=8, c=2), capsys, *more)
    assert found["top1"] == 0.8  # by number it would be 0.2
    assert [(row["name"], row["label"], row["count"]) for row in found["classes"]] == [("b", 1, 8), ("c", 2, 2)]
    assert any("2 of the model's 3 classes" in note and ": a" in note for note in found["notes"])


def test_classes_that_the_model_does_not_know_are_left_out_and_counted(
    checkpoint: Path, folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("c\nb\na\n")  # another order than the folders'
    data = folder(a=3, b=4, zebra=5)
    found = _evaluate(checkpoint, data, capsys, "--labels", str(names))
    assert (found["count"], found["top1"], found["left_out"]) == (7, pytest.approx(4 / 7), {"zebra": 5})
    assert main(["evaluate", str(checkpoint), "--data", data, "--labels", str(names)]) == 0
    out, err = capsys.readouterr()
    assert "of 7 images; 5 of classes that the model does not know are left out (zebra 5)" in out
    assert "does not know are left out: zebra" in err
    names.write_text("x\ny\nz\n")
    assert main(["evaluate", str(checkpoint), "--data", data, "--labels", str(names)]) == 2
    err = capsys.readouterr().err
    assert "none of the data's classes (a, b, zebra) is one of the model's (x, y, z)" in err
    assert _evaluate(checkpoint, data, capsys, "--labels", str(names), "--by-number")["top1"] == pytest.approx(4 / 12)


def test_names_travel_though_nothing_tells_how_images_are_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ViTConfig(
        image_size=(8, 8), patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3, norm_eps=1e-12
    )
    params = init_params(jax.random.key(0), config)
    save(tmp_path / "a", build_model(config), params, "huggingface_vit", class_names=("c", "b", "a"))
    for source, target, layout in (("a", "b", "huggingface_vit"), ("b", "c", "timm")):
        given = [str(tmp_path / source), str(tmp_path / target), "--layout", layout]
        assert main(["convert", *given]) == 0
    assert json.loads((tmp_path / "b" / "config.json").read_text())["id2label"] == {"0": "c", "1": "b", "2": "a"}
    assert "the names of the classes are not written" in capsys.readouterr().err
    assert not (tmp_path / "b" / "preprocessor_config.json").exists()


def test_a_name_of_several_classes_is_refused_where_the_data_have_it() -> None:
    names = ("crane", "b", "crane")  # a bird and a machine, as ImageNet has them
    with pytest.raises(ValueError, match=r"'crane' is the name of 2 of the model's: --labels FILE .* --by-number"):
        match_labels(["b", "crane"], 3, names)
    assert [*match_labels(["b"], 3, names).numbers] == [1]
    with pytest.raises(ValueError, match="'crane' is the name of 2"):
        match_labels(["crane"], 3, ("n1", "n2", "n3"), names)
    assert [*match_labels(["n3"], 3, ("n1", "n2", "n3"), names).numbers] == [2]


def test_a_model_without_names_says_so_where_the_numbers_differ() -> None:
    matching = match_labels(["cat", "dog", "fish"], 1000, None)
    assert matching.numbers.tolist() == [0, 1, 2]
    assert "3 labels and 1,000 classes" in matching.notes[0]
    assert match_labels(["cat", "dog"], 2, None).notes == ()
    assert match_labels(["0", "1", "2"], 2, ["a", "b"]).numbers.tolist() == [0, 1, -1]


def test_names_of_every_kind_of_config() -> None:
    for key, count, told, expected in (
        ("label_names", 3, ["a", "b", "c"], ("a", "b", "c")),
        ("label_names", 4, {"0": "a", "2": "c"}, ("a", "1", "c", "3")),  # gaps
        ("labels", 2, {1: "b", 0: "a"}, ("a", "b")),
        ("id2label", 2, {"0": "LABEL_0", "1": "LABEL_1"}, None),
        ("id2label", 2, {"0": "a", "1": "LABEL_1"}, ("a", "LABEL_1")),
        ("label_names", 2, {"cat": "a"}, None),
    ):
        assert read_labels({key: told, "num_classes": count})[0] == expected
        if key != "id2label":
            assert read_labels({"pretrained_cfg": {key: told, "num_classes": count}})[0] == expected
    coded = {"label_names": ["n01", "n02"], "label_descriptions": {"n01": "tench", "n02": "goldfish"}}
    assert read_labels(coded) == (("n01", "n02"), ("tench", "goldfish"))
    assert read_labels({"pretrained_cfg": coded}) == (("n01", "n02"), ("tench", "goldfish"))


def test_descriptions_of_every_kind(caplog: pytest.LogCaptureFixture) -> None:
    named, expected = ("n01", "n02"), ("tench", "goldfish")
    forms = (["tench", "goldfish"], ("tench", "goldfish"), {"0": "tench", "1": "goldfish"}, {1: "goldfish", 0: "tench"},
             {"n02": "goldfish", "n01": "tench"})  # fmt: skip
    for told in forms:
        for names in ({"label_names": list(named)}, {"labels": {"1": "n02", "0": "n01"}}):
            everything: dict[str, object] = {**names, "label_descriptions": told, "num_classes": 2}
            assert read_labels(everything) == (named, expected)
            assert read_labels({"pretrained_cfg": everything}) == (named, expected)
            assert read_labels({**names, "pretrained_cfg": {"label_descriptions": told}}) == (named, expected)
        assert read_labels({"id2label": {"0": "n01", "1": "n02"}, "label_descriptions": told}) == (named, expected)
    for told in forms[:4]:  # by number they are names where there are no others
        assert read_labels({"label_descriptions": told, "num_classes": 2}) == (expected, None)
    assert read_labels({"label_descriptions": forms[4], "num_classes": 2}) == (None, None)
    assert not caplog.records
    assert read_labels({"label_names": list(named), "label_descriptions": ["tench"]}) == (named, None)
    assert "label_descriptions is left out: it has 1, for 2 classes" in caplog.text


def test_imagenets_names_come_from_timm() -> None:
    assert is_imagenet({"architecture": "x", "pretrained_cfg": {"tag": "augreg_in21k_ft_in1k"}}, None, 1000)
    assert is_imagenet({}, "vit_tiny_patch16_224.augreg_in21k_ft_in1k", 1000)
    assert not is_imagenet({"architecture": "x", "pretrained_cfg": {"tag": "augreg_in21k"}}, None, 1000)
    assert not is_imagenet({}, "vit_tiny_patch16_224.augreg_in21k_ft_in1k", 10)  # its head was replaced
    found = imagenet_names()
    if found is None:
        pytest.skip("timm is not installed")
    assert (found[0][0], found[1][0]) == ("n01440764", "tench, Tinca tinca")
    assert len(found[0]) == len(found[1]) == len(set(found[0])) == 1000


def test_bad_files_among_many_do_not_lose_the_answers(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path in paths:
        Image.new("L", (8, 8), 90).save(path)
    paths[1].write_bytes(b"nothing")
    command = ["predict", str(checkpoint), *map(str, paths)]
    assert main([*command, "--json"]) == 1
    out, err = capsys.readouterr()
    answers = json.loads(out)
    assert [answer.get("guesses", [{"label": None}])[0]["label"] for answer in answers] == [1, None, 1]
    assert "not a readable image" in answers[1]["error"]
    assert "1 of 3 images cannot be read and are left out" in err
    assert str(paths[1]) in err
    assert main(command) == 1
    assert str(paths[2]) in capsys.readouterr().out
    target = tmp_path / "features.npz"
    assert main(["features", str(checkpoint), *map(str, paths), "-o", str(target)]) == 1
    with np.load(target) as file:
        assert file["images"].tolist() == [str(paths[0]), str(paths[2])]
        assert file["features"].shape == (2, 16)
    assert main(["predict", str(checkpoint), str(paths[1])]) == 2
    assert main(["features", str(checkpoint), str(paths[0]), "-o", str(target), "--projected"]) == 2
    assert "has no projection" in capsys.readouterr().err
