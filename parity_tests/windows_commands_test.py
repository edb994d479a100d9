"""The commands on trunks with window attention, against transformers with its image processors on the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.peers import import_transformers
from parity_tests.windows_test import LAYOUTS, build, detectron2_names, larger, meta_names, metas_sam3, told
from vit_flax.cli.main import main
from vit_flax.config import WindowedViTConfig
from vit_flax.convert import get_layout
from vit_flax.parity.tolerances import FLOAT32_ROUNDING
from vit_flax.preparing import read_file, read_preprocessing
from vit_flax.pretrained import from_state_dict
from vit_flax.recipes.adapting import classifier_of
from vit_flax.train.batch import normalise_batch
from vit_flax.train.config import DataConfig, TrainConfig
from vit_flax.train.data import open_source
from vit_flax.train.data.loader import make_loader
from vit_flax.train.data.prepared import data_fields

transformers = import_transformers()
PROCESSORS: dict[str, Any] = {
    "sam": ("SamImageProcessor", {"size": {"longest_edge": 40}, "pad_size": {"height": 40, "width": 40}}),
    "sam3": ("Sam3ImageProcessor", {"size": {"height": 40, "width": 40}}),
}


def photos(folder: Path) -> list[str]:
    """Draws a wide, a tall and a small photograph, and one with a rotated EXIF orientation."""
    drawn = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    files = []
    for number, (size, exif) in enumerate((((40, 91), None), ((75, 33), None), ((7, 9), None), ((60, 31), turned))):
        files.append(str(folder / f"{number}.png"))
        Image.fromarray(drawn.integers(0, 256, (*size, 3), np.uint8)).save(files[-1], exif=exif)
    return files


def folder_of(case: str, folder: Path) -> tuple[Any, Any]:
    """Saves a model of transformers with its image processor, and returns both."""
    model, _, _ = build(case)
    kind, told = PROCESSORS[case]
    processor = getattr(transformers, kind)(**told)
    model.float().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def outputs(model: Any, processor: Any, files: list[str]) -> np.ndarray:
    """Returns transformers' tokens of image files."""
    images = [transformers.image_utils.load_image(file) for file in files]
    with torch.no_grad():
        out = model(processor(images, return_tensors="pt")["pixel_values"]).last_hidden_state
    return (out.flatten(2).swapaxes(1, 2) if out.ndim == 4 else out).numpy()


@pytest.mark.parametrize("case", PROCESSORS)
def test_features_of_files_are_transformers(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = folder_of(case, tmp_path / "theirs")
    files = photos(tmp_path)
    expected = outputs(model, processor, files)
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    # what is written beside our weights alone
    (tmp_path / "ours" / "preprocessing.json").unlink()
    value = read_preprocessing(tmp_path / "ours")
    assert value == read_preprocessing(tmp_path / "theirs")
    reread = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert type(reread).__name__.startswith(PROCESSORS[case][0] if case == "sam" else "ViTImageProcessor")
    np.testing.assert_allclose(outputs(model, reread, files), expected, rtol=0, atol=FLOAT32_ROUNDING)
    picture = str(tmp_path / "attention.png")
    assert main(["attention", str(tmp_path / "theirs"), files[0], "-o", picture]) == 2
    assert "block 0 attends inside windows, which are no map of the image; ask for a layer that sees all of it: 1" in (
        capsys.readouterr().err
    )
    target = tmp_path / "tokens.npz"
    assert main(["features", str(tmp_path / "theirs"), *files, "-o", str(target), "--tokens"]) == 0
    found = np.load(target)["features"]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.linalg.norm(ours - theirs) <= 4 * FLOAT32_ROUNDING * np.linalg.norm(theirs)


def save(case: str, folder: Path) -> list[str]:
    """Saves a trunk in an owner's format, and returns the arguments that compare it."""
    if case in ("sam", "sam3"):
        larger(case)[0].float().save_pretrained(folder)
        return [str(folder)]
    if case == "sam_hq":
        build("sam_hq")[0].float().save_pretrained(folder)
        return [str(folder)]
    named = {
        "timm": lambda: dict(build("timm")[0].state_dict()),
        "Meta's": lambda: meta_names(build("timm, Meta's")[0]),
        "detectron2's": lambda: detectron2_names(build("vitdet")[0]),
        "Meta's SAM 3": lambda: metas_sam3(build("sam3")[0]),
    }[case]()
    file = folder / "weights.pth"
    torch.save({name: torch.as_tensor(np.asarray(tensor), dtype=torch.float32) for name, tensor in named.items()}, file)
    sizes = {"Meta's SAM 3": ["num_heads=4", "image_size=40", "window_size=3", "global_attn_indexes=1"]}.get(case, [])
    return [str(file), *(part for size in sizes for part in ("--set", size))]


TIMM = ["--model", "samvit_base_patch16"]
OWNERS = {
    "sam3": ([], "transformers' Sam3ViTModel"),
    "sam": ([], "transformers' SamVisionModel"),
    "sam_hq": ([], "transformers' SamHQVisionModel"),
    "timm": (TIMM, "timm's samvit_base_patch16"),
    "Meta's": (["--against", "timm", *TIMM], "timm's samvit_base_patch16"),
    "detectron2's": (["--against", "transformers"], "transformers' VitDetModel"),
    "Meta's SAM 3": (["--against", "transformers"], "transformers' Sam3ViTModel"),
}


@pytest.mark.parametrize(
    "case", [case if case == "sam3" else pytest.param(case, marks=pytest.mark.slow) for case in OWNERS]
)
def test_compare_judges_every_owners_files(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, title = OWNERS[case]
    assert main(["compare", *save(case, tmp_path), *arguments]) == 0
    out = capsys.readouterr().out
    assert f"against {title}" in out.splitlines()[0]
    assert ("cast to float32: left in float64" in out) == ("sam3" in case or "SAM 3" in case)
    if case == "Meta's":
        assert main(["compare", *save(case, tmp_path), "--against", "transformers"]) == 0
        assert "against transformers' SamVisionModel" in capsys.readouterr().out
        assert main(["compare", *save(case, tmp_path)]) == 2
        assert "--against transformers, or --against timm with --model NAME, compares" in capsys.readouterr().err


CLASSIFIERS = {"sam": "timm_sam", "vitdet": "flax_windowed", "sam3": "flax_windowedrope"}


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_a_trunk_is_given_a_classifier(case: str) -> None:
    config = from_state_dict(build(case)[0].state_dict(), **told(case))[0].config
    model, layout = classifier_of(config, 2, LAYOUTS[case])
    assert (model.num_classes, model.global_pool, layout) == (2, "avg", CLASSIFIERS[case])
    assert model.fc_norm == (case != "sam")  # whose neck ends with a norm
    assert not get_layout(CLASSIFIERS[case]).refusals(model)
    with pytest.raises(ValueError, match=r"model.global_pool=none gives logits for each patch.*: avg pools them"):
        TrainConfig(model=model.replace(global_pool="none", fc_norm=False, final_norm=False), epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("case", CLASSIFIERS)
def test_a_trunk_is_fine_tuned(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(case)[0].float().save_pretrained(tmp_path / "theirs")
    files: list[str] = []
    for split, name in ((split, name) for split in ("train", "val") for name in "ab"):
        (tmp_path / "data" / split / name).mkdir(parents=True)
        files = photos(tmp_path / "data" / split / name)
    sets = [f"checkpoint={tmp_path / 'theirs'}", "data=image_folder", f"folder={tmp_path / 'data'}",
            "data.batch_size=4", "epochs=1", "lora.rank=2"]  # fmt: skip
    out = tmp_path / "run"
    assert main(["train", "finetune", *(p for s in sets for p in ("--set", s)), "--out", str(out), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["predict", str(out / "final"), files[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(out / "final"), "--data", f"image_folder:{tmp_path / 'data'}", "--split", "val"]) == 0


def test_evaluation_in_training_fills_up_with_zeros(tmp_path: Path) -> None:
    """Images padded with zeros after normalisation cannot be uint8 and come as float32."""
    kind, told = PROCESSORS["sam"]
    processor = getattr(transformers, kind)(**told)
    (tmp_path / "preprocessor_config.json").write_text(processor.to_json_string())
    value = read_file(tmp_path / "preprocessor_config.json")
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        files = photos(tmp_path / split / "a")
    fields = {"name": "image_folder", "path": str(tmp_path), "batch_size": 4, **data_fields(value, (40, 40), 3)}
    model = WindowedViTConfig(num_classes=1, image_size=(40, 40), patch_size=(8, 8))
    config = TrainConfig(model=model, data=DataConfig(**fields), epochs=1)
    source = open_source(config.data, "val", 3, 1)
    source.decoding = value.decoding
    (batch,) = list(make_loader(source, config.data, image_size=(40, 40), channels=3, train=False))
    found = np.asarray(normalise_batch(batch["image"], config))
    images = [transformers.image_utils.load_image(file) for file in files]
    expected = processor(images, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=4 * FLOAT32_ROUNDING)
    assert (found == 0).sum() > 1000
