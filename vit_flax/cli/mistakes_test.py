"""Mistakes on the command line: one line each, with advice that is followed here, and the exit status."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from PIL import Image

from vit_flax.cli.main import main
from vit_flax.config import ViTConfig
from vit_flax.models import build_model
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.pretrained import save
from vit_flax.train.state import init_params

CONFIG = ViTConfig(image_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=1, num_heads=2, num_classes=2)
PHOTO = "photos/train/a/0.png"
FILES = {
    "empty.safetensors": b"", "text.pth": b"hello", "half.safetensors": b"\x10\0\0\0\0\0\0\0{",
    "keras.h5": b"\x89HDF\r\n\x1a\n", "model.gguf": b"GGUF\3\0\0\0",
    "page.pth": b"<!DOCTYPE html><html>404", "run.json": b"{", "three.txt": b"a\nb\nc\n",
    "pointer.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "bad.png": b"nothing",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs in train/ and validation/, a model of theirs, and files that are none."""
    root = tmp_path_factory.mktemp("place")
    for split in ("train", "validation"):
        for name in "ab":
            (root / "photos" / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (9, 9), (20 * i, 60, 9)).save(root / "photos" / split / name / f"{i}.png")
    prepared = Preprocessing(image_size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, class_names=("a", "b"))
    save(root / "m", build_model(CONFIG), init_params(jax.random.key(0), CONFIG), preprocessing=prepared)
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    (root / "folder").mkdir()
    return root


def _run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        status: Any = main(arguments)
    except SystemExit as left:  # argparse's way
        status = left.code
    out, err = capsys.readouterr()
    return status, out, err


# (what was typed, a part of what is told)
MISTAKES: list[tuple[str, str]] = [
    # data
    ("evaluate m --data photos", "did you mean --data image_folder:photos?"),
    ("evaluate m --data imagefolder:photos", "did you mean 'image_folder'?"),
    ("evaluate m --data image_folder:photos --split validation", "did you mean 'val'?"),
    ("evaluate m --data image_folder:photos --split vall", "did you mean 'val'?"),
    ("evaluate m --data cifar100", "there are digits, fashion_mnist"),
    ("evaluate m --data image_folder:nowhere", "nowhere: no such folder"),
    ("evaluate m --data image_folder:photos --max-bad-share 2", "max_bad_share must be in 0..1"),
    # images
    ("predict m bad.png", "bad.png: not a readable image"),
    ("predict m nowhere.png", "nowhere.png: no such file"),
    ("attention m photos -o a.png", "a.png: shows one image; for more, -o FILE.npz or a new folder gets the weights"),
    ("predict m folder", "folder: has no image files"),
    (f"predict m {PHOTO} --labels three.txt", "3 names for 2 classes"),
    (f"predict m {PHOTO} --top 0", "--top must be at least 1"),
    (f"predict m {PHOTO} --mean 0.5,0.5", "mean has 2 numbers, the model's images have 3 channels"),
    (f"predict m {PHOTO} --set num_classes=5", "a new one of 5 classes has random weights"),
    (f"predict m {PHOTO} --set image_size=9", "image height 9 is not divisible by the patch size 4"),
    (f"predict m {PHOTO} --set dept=2", "did you mean 'depth'?"),
    ("predict m", "required: images"),
    # files that are no weights
    (f"predict {PHOTO} m", "is an image (PNG)"),
    ("inspect keras.h5", "is an HDF5 file (Keras"),
    ("inspect model.gguf", "is a GGUF file"),
    ("inspect page.pth", "is a page of the web: the download failed"),
    ("inspect run.json", "is text (JSON)"),
    ("inspect text.pth", "is neither safetensors, a PyTorch file"),
    ("inspect empty.safetensors", "is empty"),
    ("inspect half.safetensors", "half.safetensors: "),
    ("inspect pointer.bin", "run git lfs pull"),
    ("inspect folder", "folder: holds no weights"),
    ("inspect https://huggingface.co/google/vit-base-patch16-224", "did you mean hf://google/vit-base-patch16-224?"),
    ("inspect https://example.org/vit.pth", "https://example.org/vit.pth: no such file or folder: download it first"),
    ("inspect m --entry teacher", "has no entry 'teacher'"),
    ("inspect m --config vit_tiny", "did you mean 'vit_tiny_patch16_224'"),
    ("inspect m --resample cubic", "known: bicubic"),
    ("convert m out.xyz", "unknown suffix; use .safetensors"),
    ("convert m", "required: target"),
    ("features m x.png -o features.csv", "must end in .npz"),
    # training
    ("train finetune --set checkpoint=m --set folder=photos --set num_classes=3", "the classes come from the folder"),
    ("train finetune --set checkpoint=m --set folder=nowhere", "nowhere: no such folder"),
    ("train finetune --set checkpoint=m --set folder=photos", "6 training images are fewer than data.batch_size 64"),
    ("train digits --lr 3", "did you mean --set optimizer.learning_rate=3?"),
    ("train digits --epochs=3", "did you mean --set epochs=3?"),
    ("train digits --batch-size 3", "did you mean --set data.batch_size=3?"),
    ("train digits --set epochs=ten", "epochs must be a positive number"),
    ("train digits --set optimizer.name=adam", "must be one of adamw, lamb"),
    ("train run.json", "run.json: Expecting property name"),
    ("train nowhere.json", "nowhere.json: No such file"),
    ("train finetune --set checkpoint=m --set folder=photos --set layout=dino", "pass --set layout=timm"),
    ("train digits --set export_layout=dino", "num_classes=10 (it holds 0); timm, deit, "),
    ("convert m out.npz --layout dino", "num_classes=2 (it holds 0); timm, deit, "),
    ("convert m out.npz --from torchvision", "the names are those of layout 'timm' ("),
    # towers and depth
    (f"zeroshot m {PHOTO} --labels=", "a label is empty"),
    (f"depth m {PHOTO} -o d.png", "is no depth model: its config says no model_type"),
    ("push nowhere owner/name", "nowhere: no such folder"),
    # the command
    ("Predict m x.png", "did you mean 'predict'?"),
    ("inspect m --jsn", "did you mean --json?"),
    ("version", "there are compare, convert"),
    ("list models", "'presets', 'layouts', 'recipes', 'sources'"),
]


@pytest.mark.parametrize(("typed", "said"), MISTAKES)
def test_a_mistake_is_one_line(
    typed: str, said: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    status, out, err = _run(typed.split(), capsys)
    assert (status, out) == (2, ""), err
    *before, line = err.splitlines()
    assert line.startswith("vit-flax")
    assert said in line
    assert all(text.startswith(("... ", "note: ")) for text in before), err


# (what the lines above tell to do, and its exit status)
ADVICE: list[tuple[str, int]] = [
    ("evaluate m --data image_folder:photos --split val", 0),
    (f"predict m {PHOTO} photos/train/b/1.png", 0),
    (f"predict m {PHOTO} --set image_size=12", 0),
    ("inspect m --json", 0),
    ("list presets vit_tiny", 0),
    ("list presets t2t", 0),  # whose tokens are no patches
    ("list presets nothing-of-that-name", 1),
    ("convert m out.npz", 0),
    ("--version", 0),
]


@pytest.mark.parametrize(("typed", "expected"), ADVICE)
def test_what_is_advised_works(
    typed: str, expected: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    status, _, err = _run(typed.split(), capsys)
    assert status == expected, err


def test_one_bad_file_among_many_costs_only_its_own_answer(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    status, out, err = _run(["predict", "m", PHOTO, "bad.png", "photos/train/b/0.png", "--json"], capsys)
    assert status == 1
    rows = json.loads(out)
    assert ["guesses" in row for row in rows] == [True, False, True]
    assert "1 of 3 images cannot be read" in err


def test_the_paths_that_options_are_said_to_be_are_fields(place: Path) -> None:
    from vit_flax.cli.options import assignment
    from vit_flax.cli.train import build_config

    for told in ("optimizer.learning_rate=3", "epochs=3", "data.batch_size=3"):
        path, value = assignment(told)
        config = build_config("digits", {path: value}, str(place))
        for part in path.split("."):
            config = getattr(config, part)
        assert config == 3


def test_a_new_head_is_told_wherever_it_is_made(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for command in (["inspect", "m"], ["convert", "m", "five.npz"], ["features", "m", PHOTO, "-o", "f.npz"]):
        status, _, err = _run([*command, "--set", "num_classes=5"], capsys)
        assert status == 0, err
        assert err.count("a new one of 5 classes has random weights") == 1


@pytest.mark.parametrize(("width", "heads", "said"), [(192, 3, "(3 if heads are 64 wide)"), (96, 4, "num_heads=N")])
def test_a_number_of_heads_is_suggested_only_as_far_as_it_is_known(
    width: int, heads: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.replace(embed_dim=width, num_heads=heads)
    file = str(tmp_path / "w.npz")  # carries no config
    save(file, build_model(config), init_params(jax.random.key(0), config), "timm")
    status, out, _ = _run(["inspect", file, "--layout", "timm"], capsys)
    assert status == 1
    assert said in out
    assert "num_heads=12" not in out
    assert ("64 wide" in out) == (width == 192)
    told = [f"num_heads={heads}", "norm_eps=1e-6", "activation=gelu", "global_pool=token"]  # what it asks for
    given = [part for field in told for part in ("--set", field)]
    given += ["--set", "image_size=8,8"]  # asked for once the pooling is known
    assert all(f"--set {field.split('=')[0]}=" in out for field in told)
    status, out, _ = _run(["inspect", file, "--layout", "timm", *given], capsys)
    assert status == 0, out
