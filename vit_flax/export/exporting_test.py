"""Exported programs run without this library and equal the model; unusable arguments are refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image

import vit_flax
from vit_flax.cli.main import main
from vit_flax.export import checking, exporting, stablehlo_file
from vit_flax.export.exporting import export_model
from vit_flax.models.precision import Precision
from vit_flax.models.shapes import expected_shapes
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_LOGITS, FLOAT32_RELATIVE, FLOAT32_SEEN, policy_allowed
from vit_flax.preprocessing.evaluation import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore:::jax2onnx", "ignore::DeprecationWarning")
RNG = np.random.default_rng(0)
# runs every program of a folder on its images, in a process that has never seen this library
RUN = """
import json, sys, pathlib, numpy as np
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.iterdir()):
    if path.suffix not in (".onnx", ".stablehlo"):
        continue
    for count in (1, 7):
        images = np.load(folder / f"{path.stem}.npy")[:count]
        if path.suffix == ".onnx":
            import onnxruntime
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            found = session.run(None, {"images": images})
            told = session.get_modelmeta().custom_metadata_map
        else:
            from jax import export
            found = export.deserialize(bytearray(path.read_bytes())).call(images)
            told = json.loads((folder / f"{path.name}.json").read_text())
        names = json.loads(told["outputs"])
        np.savez(folder / f"{path.name}.{count}.npz", **dict(zip(names, map(np.asarray, found), strict=True)))
assert "vit_flax" not in sys.modules
"""


def random_params(model: vit_flax.VisionTransformer) -> Any:
    flat = {path: RNG.normal(0, 0.2, shape).astype(np.float32) for path, shape in expected_shapes(model).items()}
    return unflatten_dict(flat, sep="/")


def run_apart(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Returns the outputs of all programs of a folder on 7 images, having checked that one image alone has the same."""
    done = subprocess.run([sys.executable, "-I", "-c", RUN, str(folder)], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    results = {}
    for path in sorted(folder.glob("*.7.npz")):
        seven, one = (dict(np.load(folder / path.name.replace(".7.", f".{n}."))) for n in (7, 1))
        for name, array in one.items():
            np.testing.assert_allclose(array, seven[name][:1], rtol=FLOAT32_RELATIVE, atol=10 * FLOAT32_ABSOLUTE)
        results[path.name.removesuffix(".7.npz")] = seven
    return results


def assert_is_model(found: dict[str, np.ndarray], model: vit_flax.VisionTransformer, params: Any, images: Any) -> None:
    """Compares a program's outputs with the model's, by their 2-norm."""
    variables = {"params": params}
    if "logits" in found or "embeddings" in found:
        expected = {next(iter(found)): jax.jit(model.apply)(variables, images)}
    elif "features" in found:
        expected = {"features": jax.jit(lambda x: model.apply(variables, x, method="features"))(images)}
    else:
        numbers = [int(name.removeprefix("layer_")) for name in found]

        def grids(images: Any) -> Any:
            return model.apply(
                variables, images, indices=numbers, norm=True, intermediates_only=True, method="forward_intermediates"
            )

        expected = dict(zip(found, jax.jit(grids)(images), strict=True))
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert np.linalg.norm(found[name] - array) <= FLOAT32_RELATIVE * np.linalg.norm(array), name


def test_programs_run_without_this_library_and_answer_as_predict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jax2onnx")
    sizes = {"depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 3}
    model = vit_flax.create_model("vit_tiny_patch16_224", image_size=32, **sizes)
    params, names = random_params(model), ("cat", "dog", "emu")
    photos = RNG.integers(0, 256, (7, 40, 50, 3)).astype(np.uint8)
    prepared = Preprocessing(image_size=(32, 32), crop_pct=0.9, class_names=names, mean=(0.4, 0.5, 0.6))
    vit_flax.save(tmp_path / "model", model, params, "timm", prepared)
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    programs = tmp_path / "programs"
    for suffix in ("onnx", "stablehlo"):
        arguments = ["export", str(tmp_path / "model"), str(programs / f"raw.{suffix}"), "--raw-size", "40x50"]
        assert main([*arguments, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["input"] == ["batch", 40, 50, 3]
        assert told["outputs"]["logits"]["error"] <= told["outputs"]["logits"]["allowed"] < 10 * FLOAT32_SEEN
    np.save(programs / "raw.npy", photos)
    rotated = vit_flax.create_model("vit_small_patch16_rope_224.naver_in1k", image_size=32, **sizes)
    other = random_params(rotated)
    images = RNG.normal(size=(7, 32, 32, 3)).astype(np.float32)
    export_model(programs / "rope.onnx", rotated, other, "intermediates", layers=(-2, -1), norm=True)
    np.save(programs / "rope.npy", images)
    export_model(programs / "narrow.onnx", model, params, "features", dtype="bfloat16")
    np.save(programs / "narrow.npy", images)
    arguments = ["export", str(tmp_path / "model"), str(tmp_path / "logits.onnx"), "--dtype", "bfloat16"]
    assert main(arguments) == 0  # compared with the model before it is written
    capsys.readouterr()

    found = run_apart(programs)
    assert main(["predict", str(tmp_path / "model"), *(str(tmp_path / f"{n}.png") for n in range(7)), "--json"]) == 0
    guesses = [{g["name"]: g["probability"] for g in row["guesses"]} for row in json.loads(capsys.readouterr().out)]
    for name in ("raw.onnx", "raw.stablehlo"):
        shares = np.asarray(jax.nn.softmax(found[name]["logits"]))
        np.testing.assert_allclose(shares, [[g[name] for name in names] for g in guesses], atol=FLOAT32_LOGITS["atol"])
    assert set(found["rope.onnx"]) == {"layer_0", "layer_1"}
    assert_is_model(found["rope.onnx"], rotated, other, images)
    narrow = np.asarray(jax.jit(lambda x: model.apply({"params": params}, x, method="features"))(images))
    error = np.linalg.norm(found["narrow.onnx"]["features"] - narrow) / np.linalg.norm(narrow)
    assert FLOAT32_SEEN < error < policy_allowed(Precision(compute=jnp.bfloat16), model.config.depth, 64)
    sizes_of = {path.name: path.stat().st_size for path in programs.iterdir()}
    assert sizes_of["narrow.onnx"] < sizes_of["raw.onnx"]
    told = json.loads((programs / "raw.stablehlo.json").read_text())
    assert json.loads(told["labels"]) == list(names)
    assert json.loads(told["preprocessing"])["crop_pct"] == 0.9
    assert json.loads(told["config"])["embed_dim"] == 16


TINY = vit_flax.create_model("vit_tiny_patch16_224", image_size=32, depth=1, embed_dim=8, num_heads=1, num_classes=3)


def test_a_program_that_is_not_the_model_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flatbuffers")
    params = random_params(TINY)
    target = tmp_path / "model.stablehlo"
    target.write_text("what was there")

    def write(path: Path, program: Any) -> Any:
        run = stablehlo_file.write(path, dataclasses.replace(program, params=jax.tree.map(lambda a: a * 1.001, params)))
        return run

    monkeypatch.setitem(exporting.WRITERS, ".stablehlo", write)
    with pytest.raises(ValueError, match=r"is not the model, so nothing is written \(logits: off by"):
        export_model(target, TINY, params)
    assert [path.name for path in tmp_path.iterdir()] == ["model.stablehlo"]
    assert target.read_text() == "what was there"
    assert not checking.Comparison(float("nan"), 1.0, 1.0).agrees


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"^ONNX needs (jax2)?onnx: pip install 'vit-linen\[export\]'$"):
        export_model(tmp_path / "model.onnx", TINY, random_params(TINY))
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match=r"^StableHLO needs flatbuffers: pip install flatbuffers$"):
        export_model(tmp_path / "model.stablehlo", TINY, random_params(TINY))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("model.pt", {}, "unknown suffix; use .onnx or .stablehlo"),
        ("", {}, "unknown suffix"),
        ("model.stablehlo", {"output": "tokens"}, "output must be one of logits, features, intermediates"),
        ("model.stablehlo", {"dtype": "float16"}, "dtype must be float32 or bfloat16"),
        ("model.stablehlo", {"layers": (0,)}, "`layers` and `norm` are of `output='intermediates'`"),
        ("model.stablehlo", {"output": "intermediates", "layers": (1,)}, "no block 1: the model has 1"),
        ("model.stablehlo", {"raw_size": (8, 8)}, "raw_size needs preprocessing"),
    ],
)
def test_what_is_refused(path: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        export_model(tmp_path / path, TINY, {}, **options)
    assert not list(tmp_path.iterdir())


# one of every family: what is shrunk keeps every kind of layer
SWEEP = {
    "vit_base_patch16_224": {}, "deit_base_distilled_patch16_224": {},
    "vit_base_patch14_reg4_dinov2": {"image_size": 28},
    "vit_small_patch16_dinov3": {}, "eva02_tiny_patch14_224": {"image_size": 28}, "beit_base_patch16_224": {},
    "vit_base_patch16_clip_224": {}, "vit_base_patch16_siglip_224": {}, "t2t_vit_7": {},
    "vit_base_patch16_xp_224": {}, "vit_small_patch16_rope_mixed_224": {}, "vit_dpwee_patch16_reg1_gap_256": {},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("preset", SWEEP)
def test_presets_of_all_families(preset: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"depth": 2, "image_size": 32, **SWEEP[preset]}
    model = vit_flax.create_model(preset, **fields)
    params = jax.tree.map(lambda leaf: leaf * 0.2, random_params(model))
    images = RNG.normal(size=(7, *model.config.image_size, 3)).astype(np.float32)
    for suffix in ("onnx", "stablehlo"):
        export_model(tmp_path / f"logits.{suffix}", model, params)
        export_model(tmp_path / f"layers.{suffix}", model, params, "intermediates", norm=True)
    for name in ("logits", "layers"):
        np.save(tmp_path / f"{name}.npy", images)
    for found in run_apart(tmp_path).values():
        assert_is_model(found, model, params, images)
