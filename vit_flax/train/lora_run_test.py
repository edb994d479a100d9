"""Whole runs that train adapters: contents of checkpoints, resumption, exported files, and refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

import vit_flax
from vit_flax.cli.main import main
from vit_flax.cli.train import build_config
from vit_flax.convert import read_checkpoint
from vit_flax.models.shapes import expected_shapes
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_RELATIVE
from vit_flax.train.loop import Run

pytestmark = [
    pytest.mark.usefixtures("compiling_once"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SIZES = {"embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 4, "image_size": 8, "in_chans": 1}
SETTINGS: dict[str, object] = {
    "model.embed_dim": 8, "model.depth": 1, "model.num_heads": 2, "model.patch_size": (4, 4), "data.batch_size": 16,
    "data.threads": 1, "peak_flops": 1e12, "log_every": 2, "steps": 4, "checkpoint_every": 2, "eval_every": 4,
    "lora.rank": 2, "lora.targets": "q,v,mlp/fc1", "lora.dropout": 0.2, "optimizer.learning_rate": 0.05,
    "schedule.warmup_epochs": 0, "ema.decay": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other classes than the data's, in timm's layout."""
    model = vit_flax.create_model("vit_tiny_patch16_224", num_classes=7, mlp_ratio=2.0, **SIZES)
    rng = np.random.default_rng(0)
    shapes = expected_shapes(model)
    flat = {path: rng.normal(0, 0.3, shape).astype(np.float32) for path, shape in shapes.items()}
    folder = tmp_path_factory.mktemp("base") / "model"
    vit_flax.save(folder, model, unflatten_dict(flat, sep="/"), "timm")
    return folder


def flat_of(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]


def settings(base: Path, out: Path) -> dict[str, object]:
    return {**SETTINGS, "init_from": str(base), "out": str(out)}


def test_a_run_holds_only_adapters_goes_on_to_the_bit_and_leaves_a_peft_folder(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = build_config("digits", settings(base, out), None)
    run = Run(config, quiet=True)
    before = jax.device_get(run.state.frozen)
    assert run.run().finished
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state.frozen), before)

    stored = read_checkpoint(out / "checkpoints")  # Orbax's, under the names of our parameters
    model, merged = vit_flax.load(out / "final")
    adapted = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(run.state.params))
    moments = [leaf for leaf in jax.tree.leaves(run.state.opt_state) if leaf.ndim]
    assert sum(np.prod(leaf.shape) for leaf in moments) == 2 * adapted
    assert not any("norm1" in name or "pos_embed" in name for name in stored.shapes), stored.shapes
    assert any("lora_a" in name for name in stored.shapes)

    whole = {path: np.asarray(leaf) for path, leaf in flat_of(merged).items()}
    _, again = vit_flax.load(out / "final_adapter")
    for path, leaf in flat_of(again).items():
        np.testing.assert_allclose(leaf, whole[path], rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE, err_msg=path)
    assert model.config.num_classes == 10
    changed = {p for p, leaf in flat_of(vit_flax.load(base)[1]).items()
               if not np.array_equal(leaf, whole[p])}  # fmt: skip
    assert changed == {"blocks_0/attn/qkv/kernel", "blocks_0/mlp/fc1/kernel", "head/kernel", "head/bias"}
    width = whole["blocks_0/attn/qkv/kernel"].shape[0]
    keys = vit_flax.load(base)[1]["blocks_0"]["attn"]["qkv"]["kernel"][:, width : 2 * width]
    np.testing.assert_array_equal(whole["blocks_0/attn/qkv/kernel"][:, width : 2 * width], keys)
    results = json.loads((out / "results.json").read_text())
    assert results["trained_parameters"] == adapted

    first = load_file(out / "final" / "model.safetensors")
    shutil.rmtree(out / "checkpoints" / "00000004")
    again_run = Run(config, quiet=True)
    assert again_run.start == 2
    assert again_run.run().finished
    for name, array in load_file(out / "final" / "model.safetensors").items():
        np.testing.assert_array_equal(array, first[name], err_msg=name)

    # the base is in no checkpoint: another one is not taken for it
    other = tmp_path / "other"
    shutil.copytree(base, other)
    tensors = load_file(other / "model.safetensors")
    tensors["blocks.0.mlp.fc2.bias"] = tensors["blocks.0.mlp.fc2.bias"] + 1
    kept = (base / "model.safetensors").read_bytes()
    try:
        save_file(tensors, base / "model.safetensors")
        shutil.rmtree(out / "checkpoints" / "00000004")
        with pytest.raises(ValueError, match="holds other weights than when the run"):
            Run(config, quiet=True)
    finally:
        (base / "model.safetensors").write_bytes(kept)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["lora.targets=q_proj"], "'q_proj' matches no layer of this model; did you mean 'q'?"),
        (["lora.rnk=4"], "no field 'lora.rnk'; did you mean 'lora.rank'?"),
        (["lora_alpha=4"], "did you mean 'lora.alpha'?"),
        (["lora.rank=4", "optimizer.freeze=head/.*"], "leave optimizer.freeze out"),
        (["lora.rank=4", "optimizer.train=head/.*"], "leave optimizer.train out"),
    ],
)
def test_what_is_refused(settings: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main(["train", "digits", *arguments, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
