"""From a folder of photographs to transformers and timm, by the commands alone."""

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image

import vit_flax
from parity_tests.peers import import_timm, import_transformers
from parity_tests.random_weights import randomise
from vit_flax.cli.main import main
from vit_flax.convert import get_layout
from vit_flax.models import build_model
from vit_flax.parity.tolerances import FLOAT32_LOGITS, FLOAT32_RELATIVE, PROBABILITY
from vit_flax.preparing import beside_weights
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.recipes.adapting import classifier_of

transformers = import_transformers()
NAMES = ("ant", "bee", "cat")
SIZES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                         "image_size": 16, "patch_size": 8}  # fmt: skip
TIMM: dict[str, Any] = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
pytestmark = [
    pytest.mark.usefixtures("_float32"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs in train/ and val/; the first of every class lies on its side, as its EXIF data say."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    for split, count in (("train", 4), ("val", 2)):
        for k, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                exif = Image.Exif()
                exif[0x0112] = 6 if i == 0 else 1
                ramp = np.linspace(0, 90, 28)[None, :, None]  # turned it is another picture
                pixels = rng.integers(0, 40, (20, 28, 3)) + ramp + 50 * k
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.jpg", exif=exif)
    return root


def _finetune(checkpoint: Path, photos: Path, out: Path) -> Path:
    settings = {"checkpoint": checkpoint, "folder": photos, "data.batch_size": 12, "steps": 4, "data.threads": 1,
                "optimizer.learning_rate": 0.01, "peak_flops": 1e12, "schedule.warmup_epochs": 0}  # fmt: skip
    told = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", "finetune", *told, "--out", str(out), "--quiet"]) == 0
    return out / "best"


def _predict(folder: Path, images: list[Path]) -> list[dict[str, float]]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["predict", str(folder), *map(str, images), "--json"]) == 0
    return [{guess["name"]: guess["probability"] for guess in row["guesses"]} for row in json.loads(out.getvalue())]


def _assert_same(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert [set(row) for row in ours] == [set(NAMES)] * len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=PROBABILITY)
    spread = max(abs(ours[0][name] - ours[-1][name]) for name in NAMES)
    assert spread > 100 * PROBABILITY, "all photographs look alike"


def _clip() -> torch.nn.Module:
    text = {**SIZES, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1}
    del text["image_size"], text["patch_size"]
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=SIZES, text_config=text, projection_dim=12))


# how a photograph is prepared there, and a model without the classes of the folder
HUGGINGFACE: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ViT": (lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES)),
            {"image_processor_type": "ViTImageProcessor", "size": 16}),
    "CLIP": (_clip, {"image_processor_type": "CLIPImageProcessor", "crop_size": 16, "size": {"shortest_edge": 16}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", HUGGINGFACE)
def test_transformers_has_the_probabilities_and_names(kind: str, photos: Path, tmp_path: Path) -> None:
    make, processor = HUGGINGFACE[kind]
    randomise(make()).float().save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "preprocessor_config.json").write_text(json.dumps(processor))
    best = _finetune(tmp_path / "checkpoint", photos, tmp_path / "run")
    assert json.loads((best / "config.json").read_text())["architectures"] == [f"{kind}ForImageClassification"]
    images = sorted((photos / "train").rglob("*.jpg"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = transformers.pipeline("image-classification", str(best))
        theirs = [{guess["label"]: guess["score"] for guess in pipe(str(path))} for path in images]
    _assert_same(_predict(best, images), theirs)


def test_timm_has_the_probabilities_and_names(photos: Path, tmp_path: Path) -> None:
    timm = import_timm()
    told = {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.9}, "model_args": TIMM}
    model = randomise(timm.create_model("vit_tiny_patch16_224", **TIMM)).float()
    timm.models.save_for_hf(model, tmp_path / "checkpoint", told, safe_serialization=True)
    best = _finetune(tmp_path / "checkpoint", photos, tmp_path / "run")
    images = sorted((photos / "train").rglob("*.jpg"))
    model = timm.create_model(f"local-dir:{best}", pretrained=True).eval()
    assert tuple(model.pretrained_cfg["label_names"]) == NAMES
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    theirs = []
    for path in images:
        with Image.open(path) as image, torch.no_grad():
            shares = model(transform(image.convert("RGB"))[None]).softmax(-1)[0].tolist()
        theirs.append(dict(zip(NAMES, shares, strict=True)))
    _assert_same(_predict(best, images), theirs)


def test_mae_is_fine_tuned_as_transformers_vit(tmp_path: Path) -> None:
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**SIZES)).save_pretrained(tmp_path / "checkpoint")
    mae, _ = vit_flax.load(tmp_path / "checkpoint")
    config, layout = classifier_of(mae.config, 3, "huggingface_mae")
    assert layout == "huggingface_vit"
    made = build_model(config)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    params = made.init(jax.random.key(0), images)["params"]
    vit_flax.save(tmp_path / "out", made, params, layout)
    owner = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = owner(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    np.testing.assert_allclose(np.asarray(made.apply({"params": params}, images)), expected, **FLOAT32_LOGITS)


# one of every constructor and of every thing that timm's text says by an architecture's name alone
OTHER_SIZES = ("vit_base_patch16_clip_224", "beit_base_patch16_224", "beitv2_base_patch16_224",
               "deit_tiny_distilled_patch16_224", "vit_small_patch16_dinov3_qkvb", "vit_pe_core_tiny_patch16_384",
               "eva02_base_patch14_448", "vit_medium_patch16_rope_reg1_gap_256")  # fmt: skip


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_timms_local_dir_builds_an_architecture_of_other_sizes(name: str, tmp_path: Path) -> None:
    timm = import_timm()
    args = {**TIMM, "num_classes": 3}
    theirs = randomise(timm.create_model(name, **args)).float().eval()
    told = {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}, "model_args": args}
    timm.models.save_for_hf(theirs, tmp_path / "a", told, safe_serialization=True)
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    back = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(back(pixels), theirs(pixels), rtol=FLOAT32_RELATIVE, atol=FLOAT32_RELATIVE)


def test_what_timm_does_otherwise_than_transformers_is_told() -> None:
    config = vit_flax.create_model("vit_tiny_patch16_224").config
    value = Preprocessing(image_size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    file = get_layout("timm").config_file
    given = file and file(config)
    assert beside_weights("timm", config, given, value).notes == []
    for changes, said in (({"resizer": "torchvision"}, "resizes with Pillow"), ({"exif": True}, "ignores the EXIF")):
        (note,) = beside_weights("timm", config, given, value.replace(**changes)).notes
        assert said in note
    beside = beside_weights("huggingface_siglip2", config, None, value)
    assert "Siglip2ImageProcessor" in beside.notes[0]
    assert list(beside.files) == ["preprocessing.json"]
