"""Contrastive losses over eight devices, and runs that resume bit for bit."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from vit_flax.cli.main import main
from vit_flax.recipes import get_recipe
from vit_flax.train.config import DataConfig, TrainConfig
from vit_flax.train.data import DataError, open_pairs, open_source
from vit_flax.train.data.shapes import CONTEXT, SPLITS, VOCAB_SIZE, Shapes, write_tokenizer
from vit_flax.train.loop import Run

TINY = {
    "model.embed_dim": 16, "model.depth": 1, "model.num_heads": 2, "model.num_classes": 8, "model.text_embed_dim": 16,
    "model.text_depth": 1, "model.text_num_heads": 2, "model.text_output_dim": 8, "data.batch_size": 16,
    "schedule.name": "constant", "schedule.warmup_epochs": 0, "peak_flops": 1e12,
}  # fmt: skip

# What eight devices compute of 64 pairs and of a training step, and what their program holds.
DEVICES = """
import jax, json, re
import numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_RELATIVE
from vit_flax.recipes import get_recipe
from vit_flax.train.config import MeshConfig
from vit_flax.train.contrastive import sigmoid_contrastive, softmax_contrastive
from vit_flax.train.contrastive_test import TINY
from vit_flax.train.compilation import create_state, lower_step
from vit_flax.train.sharding import make_mesh, place_batch

drawn = np.random.default_rng(0)
arrays = drawn.normal(size=(2, 64, 16)).astype(np.float32)
arrays = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in arrays]
numbers = [np.float32(9.0), np.float32(-3.0)]
def loss(images, texts, scale, bias, mesh=None):
    return sigmoid_contrastive(images, texts, scale, bias, mesh)
one = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(*arrays, *numbers)
for sizes in ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
    mesh = make_mesh(MeshConfig(**sizes))
    eight = jax.jit(jax.value_and_grad(lambda *a: loss(*a, mesh), argnums=(0, 1, 2, 3)))(*arrays, *numbers)
    for ours, theirs in zip(jax.tree.leaves(eight), jax.tree.leaves(one)):
        # sums of 64 terms in another order
        np.testing.assert_allclose(ours, theirs, rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)

def step_of(changes, sizes):
    run = get_recipe("shapes")().replace({**TINY, "steps": 3, "data.batch_size": 64, **changes}).resolve(4152)
    run = run.replace({f"mesh.{axis}": size for axis, size in sizes.items()})
    mesh = make_mesh(run.mesh, jax.devices()[: int(np.prod([size for size in sizes.values()]))])
    return run, mesh, lower_step(run, mesh).compile()

batch = {"image": drawn.integers(0, 256, (64, 32, 32, 3), np.uint8), "label": drawn.integers(1, 26, (64, 12), np.int32)}
for changes in ({"model.logit_bias": True, "loss.name": "sigmoid"}, {}):
    losses, start = [], None
    for sizes in ({"data": 1}, {"data": 4, "fsdp": 2}):
        run, mesh, step = step_of(changes, sizes)
        state = create_state(run, mesh, start)
        start = jax.tree.map(np.array, state.params) if start is None else start
        for _ in range(2):
            state, scalars = step(state, place_batch(batch, mesh))
        losses.append(float(scalars["loss"]))
        text = step.as_text()
        whole, own = len(re.findall(r"f32\\[64,64\\]", text)), len(re.findall(r"f32\\[8,8\\]", text))
        print(json.dumps({"sigmoid": bool(changes), "devices": mesh.size, "whole": whole, "own": own}))
    np.testing.assert_allclose(losses[1], losses[0], rtol=FLOAT32_RELATIVE)
"""


def test_eight_devices_compute_what_one_does_and_hold_no_logits_of_all_pairs() -> None:
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run([sys.executable, "-c", DEVICES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    one, eight = (next(f for f in found if f["sigmoid"] and f["devices"] == n) for n in (1, 8))
    assert one["whole"] > 0  # what is looked for is there where it may be
    assert eight["whole"] == 0
    assert eight["own"] > 0


def shapes(out: Path, **changes: Any) -> Any:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    config = get_recipe("shapes")().replace({**TINY, **named, "out": str(out)})
    return Run(config, quiet=True).run()


@pytest.mark.usefixtures("compiling_once")
def test_a_run_goes_on_to_the_bit_and_its_weights_are_a_model_with_a_tokeniser(tmp_path, capsys) -> None:
    told = {"eval_every": 4, "checkpoint_every": 2}
    shapes(tmp_path / "whole", steps=4, **told)
    shapes(tmp_path / "parts", steps=2, **told)
    result = shapes(tmp_path / "parts", steps=4, **told)
    assert result.step == 4
    assert set(result.scores) >= {"recall", "image_to_text@1", "text_to_image@10", "loss"}
    ours, theirs = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("parts", "whole"))
    assert "text/token_embed" in ours or any("token_embedding" in name for name in ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    capsys.readouterr()
    weights = str(tmp_path / "whole" / "final")
    assert main(["evaluate", weights, "--caption-retrieval", "--data", "shapes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert result.test is not None
    for way in ("image_to_text@1", "text_to_image@5"):
        assert found["recall"][way] == pytest.approx(result.test["final"][way], abs=1.5 / found["count"])
    photo = tmp_path / "photo.png"
    Image.fromarray(Shapes("test")[0]["image"]).save(photo)
    capsys.readouterr()
    labels = ["a small red circle on black at the left", "a large blue cross on gray at the top"]
    arguments = ["zeroshot", weights, str(photo), "--labels", *labels, "--template", "{}"]
    assert main([*arguments, "--json"]) == 0
    guesses = json.loads(capsys.readouterr().out)[0]["guesses"]
    assert {guess["label"] for guess in guesses} == set(labels)


def test_what_does_not_fit_images_with_texts_is_told() -> None:
    recipe = get_recipe("shapes")()
    for changes, said in (
        ({"accumulation": 2}, "without accumulation"),
        ({"mixing.mixup_alpha": 0.1}, "without mixing"),
        ({"optimizer.layer_decay": 0.9}, "without optimizer.layer_decay"),
        ({"teacher": "vit.npz"}, "without teacher"),
        ({"loss.name": "sigmoid"}, "logit_bias=False is trained by loss.name=contrastive"),
        ({"model.logit_bias": True}, "logit_bias=True is trained by loss.name=sigmoid"),
    ):
        with pytest.raises(ValueError, match=said):
            recipe.replace(changes)
    with pytest.raises(ValueError, match="needs a two-tower model"):
        get_recipe("digits")().replace({"loss.name": "contrastive"})
    text = recipe.model.text
    with pytest.raises(DataError, match="digits has no texts; sources of images with texts: shapes"):
        open_pairs(DataConfig(name="digits"), "train", 1, text)
    with pytest.raises(DataError, match="shapes has texts and no classes; sources of images with classes: digits"):
        open_source(DataConfig(name="shapes"), "train", 3, num_classes=10)  # a class 0 alone was learnt in no time
    with pytest.raises(DataError, match=f"set model.text_vocab_size={VOCAB_SIZE}"):
        open_pairs(DataConfig(name="shapes"), "train", 3, text.replace(vocab_size=20))
    assert TrainConfig(**recipe.to_dict()) == recipe


def test_captions_of_the_splits_differ_and_fit_the_context() -> None:
    texts = {split: {Shapes(split).text(i) for i in range(len(Shapes(split)))} for split in SPLITS}
    assert not texts["train"] & (texts["val"] | texts["test"])
    assert not texts["val"] & texts["test"]
    pairs: Any = open_pairs(DataConfig(name="shapes"), "val", 3, get_recipe("shapes")().model.text)
    tokens = np.stack([pairs[i]["label"] for i in range(len(pairs))])
    assert tokens.shape == (len(pairs), CONTEXT)
    assert (tokens == VOCAB_SIZE - 1).sum(1).tolist() == [1] * len(pairs)  # each ends once


def sample(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def png(index: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(Shapes("train")[index]["image"]).save(stream, "PNG")
    return stream.getvalue()


def test_pairs_of_tar_and_parquet_files_are_read(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    source, text = Shapes("train"), get_recipe("shapes")().model.text
    write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "train-0.tar", "w") as archive:
        for i in (0, 40, 80):
            sample(archive, f"{i:03}.png", png(i))
            words = source.text(i)
            sample(archive, f"{i:03}.json", json.dumps({"caption": words}).encode()) if i else sample(
                archive, f"{i:03}.txt", f"{words}\n".encode()
            )
    rows = {
        "image": [{"bytes": png(i), "path": None} for i in (0, 40, 80)],
        "caption": [source.text(i) for i in (0, 40, 80)],
    }
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "parquet" / "train-0.parquet")
    own: Any = open_pairs(DataConfig(name="shapes"), "train", 3, text)
    for name, folder in (("webdataset_pairs", "tar"), ("parquet_pairs", "parquet")):
        data = DataConfig(name=name, path=str(tmp_path / folder), tokenizer=str(tmp_path / "tokenizer"))
        pairs: Any = open_pairs(data, "train", 3, text)
        assert len(pairs) == 3
        for row, index in enumerate((0, 40, 80)):
            np.testing.assert_array_equal(pairs[row]["image"], own[index]["image"])
            np.testing.assert_array_equal(pairs[row]["label"], own[index]["label"])
        with pytest.raises(DataError, match="has no tokeniser of its own"):
            open_pairs(DataConfig(name=name, path=str(tmp_path / folder)), "train", 3, text)
    with tarfile.open(tmp_path / "tar" / "train-1.tar", "w") as archive:
        sample(archive, "alone.png", png(0))
    with pytest.raises(DataError, match=r"train-1.tar:alone: has no text \(.txt or .json\)"):
        open_pairs(DataConfig(name="webdataset_pairs", path=str(tmp_path / "tar")), "train", 3, text)
