"""Fine-tuning a checkpoint in timm's layout and taking it back to timm; runs that must stop with one line."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.peers import import_timm
from vit_flax import load, save
from vit_flax.cli.main import main
from vit_flax.parity.tolerances import FLOAT32_LOGITS
from vit_flax.recipes import finetune, linear_probe
from vit_flax.train.checkpoints import CheckpointError
from vit_flax.train.loop import NonFiniteLoss, Run
from vit_flax.train.optimizer import trained_mask

RNG = np.random.default_rng(0)
TINY: dict[str, Any] = {"patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3}
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 8), ("val", 4)):
        for k, name in enumerate(("dark", "light", "mixed")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(RNG.normal(60 + 60 * k, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.usefixtures("_float32")
def test_timm_to_fine_tuned_to_timm(folder: Path, tmp_path: Path) -> None:
    timm = import_timm()
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7, **TINY)
    checkpoint = tmp_path / "timm.safetensors"
    config = {"num_heads": 3, "image_size": 224}
    from vit_flax import from_state_dict

    model, params = from_state_dict(theirs.state_dict(), "timm", "vit_tiny_patch16_224", num_classes=7, **TINY)
    assert model.config.num_heads == config["num_heads"]
    save(checkpoint, model, params, "timm")
    changes = {
        "optimizer.train": ("head/.*",), "optimizer.layer_decay": None, "data.batch_size": 12, "data.eval_split": "val",
        "steps": 4, "log_every": 2, "peak_flops": 1e12, "data.threads": 1, "out": str(tmp_path / "run"),
        "drop.drop_path_rate": 0.0,
    }  # fmt: skip
    recipe = finetune(str(checkpoint), str(folder), image_size=160, layout="timm").replace(changes)
    assert (recipe.model.image_size, recipe.model.num_classes) == ((160, 160), 3)
    run = Run(recipe, quiet=True)
    before = jax.device_get(run.state.params)
    result = run.run()
    assert result.finished
    after = jax.device_get(run.state.params)
    trained = trained_mask(recipe, after)
    for is_trained, old, new in zip(*(jax.tree.leaves(tree) for tree in (trained, before, after)), strict=True):
        assert is_trained != np.array_equal(old, new)

    back = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=160, **TINY)
    ours, our_params = load(tmp_path / "run" / "final")
    from safetensors.torch import load_file

    back.load_state_dict(load_file(tmp_path / "run" / "final" / "model.safetensors"), strict=True)
    images = RNG.standard_normal((2, 160, 160, 3)).astype(np.float32)
    with torch.no_grad():
        expected = back.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    answer = np.asarray(ours.apply({"params": our_params}, images))
    np.testing.assert_allclose(answer, expected, **FLOAT32_LOGITS)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["scores"]["count"] == 12
    assert set(results["per_class"]) == {"dark", "light", "mixed"}
    for name in ("curves.png", "confusion.png", "best/config.json", "log.jsonl"):
        assert (tmp_path / "run" / name).exists()
    assert linear_probe(str(checkpoint), str(folder)).optimizer.train == ("head(_dist)?/.*",)


@pytest.mark.usefixtures("_float32")
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    from vit_flax.recipes.small import digits

    changes = {
        "model.embed_dim": 8, "model.depth": 1, "model.num_heads": 1, "data.batch_size": 16, "steps": 40,
        "checkpoint_every": 2, "log_every": 4, "optimizer.learning_rate": 1e38, "optimizer.clip_norm": None,
        "schedule.warmup_steps": 3, "schedule.name": "constant", "peak_flops": 1e12, "out": str(tmp_path),
        "optimizer.name": "sgd",
    }  # fmt: skip
    run = Run(digits().replace(changes), quiet=True)
    with pytest.raises(NonFiniteLoss, match=r"the loss is (nan|inf) at step \d+, on the images .+ 8 more .*last good"):
        run.run()
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert line["kind"] == "not_finite"
    assert len(line["index"]) == 16
    assert all(step < line["step"] for step in run.checkpoints.steps())
    assert issubclass(CheckpointError, RuntimeError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digts"], "no recipe named 'digts'; did you mean 'digits'?"),
        (["digits", "--set", "data.batchsize=3"], "no field 'data.batchsize'; did you mean 'data.batch_size'?"),
        (
            ["fashion_mnist", "--set", "foldr=x"],
            "has no parameter 'foldr'; did you mean 'folder'?",
        ),
        (["linear_probe", "--set", "folder=x"], "recipe linear_probe needs --set checkpoint=..."),
        (["fashion_mnist", "--set", "folder=/nowhere"], "/nowhere"),
        (["digits", "--set", "mesh.fsdp=3"], "does not divide"),
        (["digits", "--set", "data.batch_size=5000"], "fewer than"),
        (["digits", "--set", "model.num_classes=4"], "10 classes"),
        (["digits", "--set", "optimizer.freeze=haed/.*"], "pattern 'haed/.*' matches no parameter"),
    ],
)
def test_bad_input_is_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
