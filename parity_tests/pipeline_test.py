"""`vit-flax predict` against transformers.pipeline("image-classification") and timm's own preprocessing."""

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import vit_flax
from parity_tests.peers import import_timm, import_transformers
from parity_tests.random_weights import randomise
from vit_flax.cli.main import main
from vit_flax.parity.tolerances import PHOTO_RELATIVE, PROBABILITY

transformers = import_transformers()
NAMES = {0: "tench", 1: "goldfish", 2: "white shark"}
TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "num_labels": 3, "id2label": NAMES}  # fmt: skip


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph with a rotated EXIF orientation."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(load_sample_image("flower.jpg")[40:340, 100:530]).save(path, exif=exif)
    return path


def _predict(folder: Path, photo: Path, *more: str) -> dict[str, float]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["predict", str(folder), str(photo), "--json", *more]) == 0
    return {guess["name"]: guess["probability"] for guess in json.loads(out.getvalue())[0]["guesses"]}


def _pipeline(folder: Path, photo: Path) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = transformers.pipeline("image-classification", str(folder))
        return {guess["label"]: guess["score"] for guess in pipe(str(photo))}


def _save(folder: Path, kind: str, config: dict[str, Any], processor: dict[str, Any] | None) -> Path:
    """Saves a small random classifier as transformers does, and its preprocessor_config.json."""
    values = {**TINY, **config}
    if kind == "Dinov2":
        del values["intermediate_size"]
    made = getattr(transformers, f"{kind}Config")(**values)
    model = randomise(getattr(transformers, f"{kind}ForImageClassification")(made)).float().eval()
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


BIT = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 37}, "crop_size": 32,
       "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # fmt: skip
FAMILIES = [
    ("ViT", {"image_size": 32, "patch_size": 8}, {"image_processor_type": "ViTImageProcessor", "size": 32}),
    ("ViT", {"image_size": 32, "patch_size": 8}, BIT),
    ("Dinov2", {"image_size": 56, "patch_size": 8}, BIT),  # the processor's size is not the model's
    ("Dinov2", {"image_size": 56, "patch_size": 8}, {**BIT, "do_center_crop": False}),  # any size at all
    ("Beit", {"image_size": 32, "patch_size": 8}, {"feature_extractor_type": "BeitFeatureExtractor", "size": 32,
                                                   "crop_size": 32, "do_center_crop": True}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "config", "processor"), FAMILIES)
def test_probabilities_and_names_are_the_pipelines(
    kind: str, config: dict[str, Any], processor: dict[str, Any], photo: Path, tmp_path: Path
) -> None:
    folder = _save(tmp_path / "model", kind, config, processor)
    expected = _pipeline(folder, photo)
    assert _predict(folder, photo) == pytest.approx(expected, abs=PROBABILITY)
    assert _predict(folder, photo, "--no-exif") != pytest.approx(expected, abs=PROBABILITY)
    assert vit_flax.read_preprocessing(folder).class_names == tuple(NAMES.values())
    if processor.get("do_center_crop") is False:
        return
    size = ["--set", "image_size=32"] if kind == "Dinov2" else []
    for target in ("again", "one.safetensors"):  # how images are prepared is not lost on the way
        assert main(["convert", str(folder), str(tmp_path / target), *size]) == 0
        assert _predict(tmp_path / target, photo) == pytest.approx(expected, abs=PROBABILITY)
    assert _pipeline(tmp_path / "again", photo) == pytest.approx(expected, abs=PROBABILITY)
    (tmp_path / "again" / "preprocessing.json").unlink()  # what is left is transformers' own
    assert _predict(tmp_path / "again", photo) == pytest.approx(expected, abs=PROBABILITY)


def test_a_processor_of_another_size_than_the_model_is_refused_with_two_ways_out(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _save(tmp_path / "model", "ViT", {"image_size": 64, "patch_size": 8}, BIT)
    assert main(["predict", str(folder), str(photo)]) == 2
    assert "prepares images of 32x32, the model takes 64x64: --set image_size=32,32" in capsys.readouterr().err
    for size in ("32,32", "64,64"):
        assert len(_predict(folder, photo, "--set", f"image_size={size}")) == 3


def test_what_cannot_be_followed_is_refused_and_another_file_can_be(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _save(tmp_path / "model", "ViT", {"image_size": 32, "patch_size": 8}, None)
    capsys.readouterr()
    for values, said in (
        ({"image_processor_type": "LevitImageProcessor"}, "processor 'LevitImageProcessor' is not known; known: ViT"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 32}}, "size with longest_edge is not"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad=True is not followed here"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 4}, "does not resize tensors with interpolation"),
        ({"image_processor_type": "BitImageProcessor", "crop_size": {"shortest_edge": 3}}, "crop_size with shortest"),
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(values))
        assert main(["predict", str(folder), str(photo)]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) == 1
    good = tmp_path / "good.json"
    good.write_text(json.dumps({"image_processor_type": "ViTImageProcessor", "size": 32}))
    found = _predict(folder, photo, "--preprocessing", str(good))
    (folder / "preprocessor_config.json").write_text(good.read_text())
    assert found == _predict(folder, photo)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(good.read_text())}))
    (folder / "preprocessor_config.json").write_text("{}")  # the nested one counts
    assert found == _predict(folder, photo)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    (folder / "video_preprocessor_config.json").write_text('{"video_processor_type": "VideoMAEVideoProcessor"}')
    assert main(["predict", str(folder), str(photo)]) == 2
    assert "video_preprocessor_config.json: videos are prepared otherwise" in capsys.readouterr().err


def test_a_timm_folder_goes_to_transformers_and_back_to_timm(photo: Path, tmp_path: Path) -> None:
    timm = import_timm()
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, num_classes=3)
    randomise(model).float().eval()
    folder = tmp_path / "timm"
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.9}
    args = {"img_size": 32, "patch_size": 8, "depth": 1}
    told = {"pretrained_cfg": cfg, "model_args": args, "label_names": {"0": "a", "2": "c"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm.models.save_for_hf(model, folder, told, safe_serialization=True)
    ours = _predict(folder, photo)
    assert ours.keys() == {"a", "1", "c"}
    assert ours == pytest.approx(_timm(folder, photo, ("a", "1", "c")), abs=PROBABILITY)
    for target, layout in (("again", "timm"), ("huggingface", "huggingface_vit")):
        assert main(["convert", str(folder), str(tmp_path / target), "--layout", layout]) == 0
    assert _timm(tmp_path / "again", photo, ("a", "1", "c")) == pytest.approx(ours, abs=PROBABILITY)
    assert _pipeline(tmp_path / "huggingface", photo) == pytest.approx(
        _predict(tmp_path / "huggingface", photo), abs=PROBABILITY
    )


def test_a_loaded_model_at_another_size_is_timms_and_transformers(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 48, 24, 3)).astype(np.float32)
    timm = import_timm()
    args = {"img_size": 32, "patch_size": 8, "depth": 1, "num_classes": 3}
    theirs = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **args)
    _save(tmp_path / "model", "ViT", {"image_size": 32, "patch_size": 8}, None)
    hf = transformers.ViTForImageClassification.from_pretrained(tmp_path / "model").eval()
    tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = [randomise(theirs).float().eval()(tensor), hf(tensor, interpolate_pos_encoding=True).logits]
    fields: Any = {name: args[name] for name in ("patch_size", "depth", "num_classes")}
    loaded = [vit_flax.from_state_dict(theirs.state_dict(), config="vit_tiny_patch16_224", image_size=32, **fields),
              vit_flax.load(tmp_path / "model")]  # fmt: skip
    for (model, params), logits, mode in zip(loaded, expected, ("bicubic_antialias", "bicubic"), strict=True):
        sized, changed = vit_flax.at_image_size(model, params, (48, 24), mode)
        found = np.asarray(sized.apply({"params": changed}, pixels))
        np.testing.assert_allclose(found, logits.numpy(), rtol=PHOTO_RELATIVE, atol=PROBABILITY * np.abs(found).max())


def _timm(folder: Path, photo: Path, names: tuple[str, ...]) -> dict[str, float]:
    timm = import_timm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with Image.open(photo) as image, torch.no_grad():
        shares = model(transform(image.convert("RGB"))[None]).softmax(-1)[0].tolist()
    told = model.pretrained_cfg["label_names"]
    assert [told[key] for key in sorted(told)] == ["a", "c"] if isinstance(told, dict) else tuple(told) == names
    return dict(zip(names, shares, strict=True))


def test_an_image_tower_has_no_classes_and_gives_get_image_features(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vision = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**vision, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1}
    sizes = {"image_size": 32, "patch_size": 8}
    for kind, more in (("CLIP", {"projection_dim": 12}), ("Siglip", {})):
        made = getattr(transformers, f"{kind}Config")(vision_config={**vision, **sizes}, text_config=text, **more)
        model = randomise(getattr(transformers, f"{kind}Model")(made)).float().eval()
        folder = tmp_path / kind
        model.save_pretrained(folder)
        processor = {"image_processor_type": f"{kind}ImageProcessor", "crop_size": 32}
        processor["size"] = {"shortest_edge": 32} if kind == "CLIP" else {"height": 32, "width": 32}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        for command in (["predict", str(folder), str(photo)], ["evaluate", str(folder), "--data", "digits"]):
            assert main(command) == 2
            assert "use vit-flax features" in capsys.readouterr().err
        target = tmp_path / f"{kind}.npz"
        assert main(["features", str(folder), str(photo), "--projected", "-o", str(target)]) == 0
        with warnings.catch_warnings(), Image.open(photo) as image, torch.no_grad():
            warnings.simplefilter("ignore")
            owner = transformers.AutoImageProcessor.from_pretrained(folder)
            turned = transformers.image_utils.load_image(image)
            found = model.get_image_features(**owner(turned, return_tensors="pt"))
        expected = getattr(found, "pooler_output", found).numpy()
        with np.load(target) as file:
            np.testing.assert_allclose(
                file["features"], expected, rtol=PHOTO_RELATIVE, atol=PROBABILITY * np.abs(expected).max()
            )
