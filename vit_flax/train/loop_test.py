"""Whole runs of a tiny model: the split that selects the best weights, the ends of a run, and resumption."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from vit_flax.cli.main import main
from vit_flax.cli.train import build_config
from vit_flax.train.data import DataError
from vit_flax.train.loop import Result, Run

pytestmark = [
    pytest.mark.usefixtures("compiling_once"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TINY = {
    "model.embed_dim": 8, "model.depth": 1, "model.num_heads": 1, "model.patch_size": (4, 4), "data.batch_size": 8,
    "data.threads": 1, "peak_flops": 1e12, "log_every": 2, "data.augment.shift_pixels": 0,
}  # fmt: skip
CLASSES = ("dark", "light")


def _photos(root: Path, splits: dict[str, int]) -> Path:
    """Makes a folder of dark and light pictures, so many of each class in every split."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for k, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (8, 8)) + 150 * k
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


def _changes(photos: Path, **changes: Any) -> dict[str, Any]:
    own = {"data.name": "image_folder", "data.path": str(photos), "model.num_classes": 2, "steps": 6, "eval_every": 2}
    return {**TINY, **own, **{name.replace("__", "."): value for name, value in changes.items()}}


def _run(out: Path, changes: dict[str, Any]) -> tuple[Result, dict[str, Any]]:
    result = Run(build_config("digits", changes, str(out)), quiet=True).run()
    return result, json.loads((out / "results.json").read_text())


def _lines(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_the_best_weights_are_chosen_on_val_and_test_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = _photos(tmp_path / "photos", {"train": 8, "validation": 3, "test": 5})
    # labels of test turned round: weights chosen on it would be the worst
    (photos / "test" / "dark").rename(photos / "x")
    (photos / "test" / "light").rename(photos / "test" / "dark")
    (photos / "x").rename(photos / "test" / "light")
    out = tmp_path / "run"
    settings = [f"{name}={value!r}" for name, value in _changes(photos, steps=20).items()]
    assert main(["train", "digits", *(part for s in settings for part in ("--set", s)), "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert (results["split"], results["best"]["count"], results["images"]) == (
        "val", 6, {"train": 16, "val": 6, "test": 10}
    )  # fmt: skip
    assert results["best"]["accuracy"] > 0.5 > results["test"]["best"]["accuracy"]
    assert results["test"]["final"]["count"] == 10
    assert len(_lines(out, "test")) == 1
    assert {line["split"] for line in _lines(out, "eval")} == {"val"}
    assert results["seconds"] > 0
    assert results["parameters"] == results["trained_parameters"] > 100
    told = capsys.readouterr()
    assert "the best weights are chosen on val (6), test (10) is reported once, at the end" in told.err
    evaluated = [line for line in told.err.splitlines() if "top-1" in line]
    assert len(evaluated) == 10 + len({"best", "final"})
    assert all(": val top-1 " in line or line.startswith("test, ") for line in evaluated), evaluated
    assert "epoch 1/10  step 2/20  loss" in told.err
    assert "compiling the training step" in told.err
    assert {line.split(" weights")[0] for line in told.out.splitlines()} >= {"test, best", "test, final"}
    for name in ("curves.png", "confusion.png", "best/config.json"):
        assert (out / name).exists()


def test_without_val_test_is_what_is_chosen_on_and_said(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", {"train": 8, "test": 2})
    run = Run(build_config("digits", _changes(photos), str(tmp_path / "run")), quiet=True)
    assert run.inputs.eval_split == "test"
    assert "what test then says of them is too good" in run.inputs.describe()
    run.inputs.close()


def test_images_that_cannot_be_read_are_told_before_the_first_step(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", {"train": 8, "val": 3})
    wide = np.zeros((8, 8), np.uint16)
    Image.fromarray(wide).save(photos / "val" / "light" / "0.png")
    config = build_config("digits", _changes(photos), str(tmp_path / "run"))
    with pytest.raises(DataError, match=r"val: 1 of 6 images cannot be read.*light/0\.png.*more than 8 bits"):
        Run(config, quiet=True)
    for file in photos.rglob("train/*/*.png"):
        Image.fromarray(wide).save(file)
    with pytest.raises(DataError, match=r"train: none of 16 images tried can be read.*more than 8 bits"):
        Run(config, quiet=True)


def test_a_longer_run_where_the_schedule_allows_it(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", {"train": 8, "val": 3})
    constant = _changes(photos, schedule__name="constant", schedule__warmup_epochs=0)
    _run(tmp_path / "whole", {**constant, "steps": 6})
    _run(tmp_path / "longer", {**constant, "steps": 3})
    result, results = _run(tmp_path / "longer", {**constant, "steps": 6})
    assert (result.step, results["step"], results["epochs"]) == (6, 6, 3.0)
    ours, theirs = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("longer", "whole"))
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    for changes, said in (
        ({"steps": 5}, "steps was 6 and is 5; 6 steps are done already"),
        ({"seed": 1, "steps": 8}, "seed was 0 and is 1; take another folder"),
    ):
        with pytest.raises(ValueError, match=said):
            _run(tmp_path / "longer", {**constant, **changes})
    cosine = _changes(photos, steps=2)
    _run(tmp_path / "cosine", cosine)
    with pytest.raises(ValueError, match=r"steps was 2 and is 4; the cosine schedule ends with the steps") as raised:
        _run(tmp_path / "cosine", {**cosine, "steps": 4})
    advice = f"init_from={tmp_path / 'cosine'}/final"
    assert advice in str(raised.value)
    _run(tmp_path / "further", {**cosine, "init_from": advice.partition("=")[2]})


def test_a_run_leaves_a_config_that_train_takes(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", {"train": 8, "val": 3})
    _run(tmp_path / "first", _changes(photos, steps=2))
    assert main(["train", str(tmp_path / "first" / "train.json"), "--out", str(tmp_path / "second"), "--quiet"]) == 0
    ours, theirs = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("second", "first"))
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_several_labels_an_image_weights_and_early_stopping_go_on_to_the_bit(tmp_path: Path) -> None:
    for split, count in (("train", 16), ("val", 6)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        rng = np.random.default_rng(len(split))
        rows = ["file_name,left,right"]
        for i in range(count):
            left, right = i % 2, i % 4 // 2
            pixels = np.concatenate([rng.integers(0, 90, (8, 4)) + 150 * side for side in (left, right)], 1)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / split / f"{i}.png")
            rows.append(f"{i}.png,{left},{right}")
        (tmp_path / "photos" / split / "labels.csv").write_text("\n".join(rows))
    changes = _changes(
        tmp_path / "photos", data__multi_label=True, loss__name="binary", loss__label_smoothing=0.0,
        loss__pos_weight="balanced", early_stopping__patience=3, early_stopping__min_delta=0.5, steps=40,
        mixing__mixup_alpha=0.2, schedule__name="constant", schedule__warmup_epochs=0, checkpoint_every=2,
    )  # fmt: skip
    result, results = _run(tmp_path / "whole", changes)
    assert result.step == 8  # the first evaluation, at step 2, and three without half a point more
    assert results["stopped_early"]
    assert set(results["per_class"]) == {"left", "right"}
    assert 0.3 < results["scores"]["mean_average_precision"] <= 1
    # stopped by the number of steps, gone on with more: the evaluations before count
    _run(tmp_path / "parts", {**changes, "steps": 4})
    again, _ = _run(tmp_path / "parts", changes)
    assert again.step == 8
    ours, theirs = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("parts", "whole"))
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    over, _ = _run(tmp_path / "whole", changes)  # it has ended, and stays so
    assert over.step == 8


def test_balanced_draws_and_class_weights(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", {"train": 12, "val": 3})
    for k in range(8):
        (photos / "train" / "light" / f"{k}.png").unlink()
    changes = _changes(photos, data__sampler="balanced", loss__class_weights="balanced", steps=4)
    run = Run(build_config("digits", changes, str(tmp_path / "run")), quiet=True)
    assert run.config.loss.class_weights == (16 / 24, 16 / 8)
    drawn = np.concatenate([run.inputs.train._batches.rows(step)[1] for step in range(200)])
    labels = run.inputs.train.source.labels[drawn]
    assert abs(labels.mean() - 0.5) < 0.03  # 1,600 draws
    np.testing.assert_array_equal(run.inputs.train._batches.rows(7)[1], run.inputs.train._batches.rows(7)[1])
    assert run.run().finished


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", {"train": 8, "val": 3})
    changes = {**_changes(photos, steps=2000), "eval_every": 10000, "checkpoint_every": 10000, "log_every": 1}
    settings = [part for name, value in changes.items() for part in ("--set", f"{name}={value!r}")]
    command = [sys.executable, "-m", "vit_flax.cli.main", "train", "digits", *settings, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("epoch") and len(told) < 1000 and "Ctrl-C" not in "".join(told):
            process.send_signal(signal.SIGINT)
            break
    told += process.stderr.readlines()
    assert process.wait() == 75, "".join(told)
    assert any("Ctrl-C: saving after this step" in line for line in told), told
    assert told[-1].startswith("vit-flax train: told to stop: saved step ")
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert 0 < int(saved.name) < 2000
