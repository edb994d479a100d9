"""Feature distillation from a wider teacher: runs, their files, resumption, and refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import vit_flax
from vit_flax.cli.train import build_config
from vit_flax.pretrained import load, save
from vit_flax.train.config import config_from_dict, config_from_json
from vit_flax.train.feature_distillation import PROJECTIONS, feature_loss, init_projections
from vit_flax.train.loop import Run
from vit_flax.train.state import init_params, init_state
from vit_flax.train.step import compute_loss

pytestmark = [
    pytest.mark.usefixtures("compiling_once"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SHIPPED = Path(vit_flax.__file__).parent / "reference" / "digits_vit.safetensors"
TEACHER = load(SHIPPED, num_heads=4, image_size=(8, 8))[0].config  # 48 wide, 4 blocks
CHANGES: dict[str, Any] = {
    "model.embed_dim": 8, "model.depth": 2, "model.num_heads": 1, "model.patch_size": (2, 2), "data.batch_size": 32,
    "data.threads": 1, "peak_flops": 1e12, "log_every": 1, "steps": 4, "eval_every": 4, "checkpoint_every": 2,
    "teacher": str(SHIPPED), "teacher_model": TEACHER.to_dict(), "loss.feature_weight": 0.5,
    "loss.feature_layers": (0, 1), "loss.teacher_layers": (1, 3), "ema.decay": 0.9, "data.augment.shift_pixels": 0,
}  # fmt: skip


def test_a_run_exports_the_model_alone_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    config = build_config("digits", CHANGES, str(tmp_path / "whole"))
    assert config.loss.feature_layers == (0, 1)
    assert config_from_json(config.to_json()) == config
    Run(config, quiet=True).run()
    whole = load_file(tmp_path / "whole" / "final" / "model.safetensors")
    assert not any(PROJECTIONS in name for name in whole)
    model, params = load(tmp_path / "whole" / "final")
    assert model.config.embed_dim == 8
    assert PROJECTIONS not in params
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert all(0 < line["loss"] < 10 for line in lines if line["kind"] == "train")

    cut = tmp_path / "cut"  # as it stood after the first two steps
    shutil.copytree(tmp_path / "whole", cut)
    shutil.rmtree(cut / "final")
    for folder in sorted((cut / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    Run(dataclasses.replace(config, out=str(cut)), quiet=True).run()
    again = load_file(cut / "final" / "model.safetensors")
    for name, array in whole.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_the_loss_is_added_and_trains_student_and_projections_but_no_teacher() -> None:
    config = build_config("digits", CHANGES, "unused").resolve(1000)
    state = jax.jit(partial(init_state, config=config))(jax.random.key(0))
    assert set(state.params[PROJECTIONS]) == {"layer_0", "layer_1"}
    assert state.params[PROJECTIONS]["layer_0"]["kernel"].shape == (8, 48)
    images, labels = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), jnp.arange(2)
    model_params = {name: tree for name, tree in state.params.items() if name != PROJECTIONS}

    def loss(own: Any, projections: Any, teacher: Any, config: Any = config) -> Any:
        return compute_loss(own, teacher, images, labels, jax.random.key(2), config, None, projections)

    arguments = (model_params, state.params[PROJECTIONS], state.teacher)
    plain = dataclasses.replace(config, teacher=None, loss=dataclasses.replace(config.loss, feature_weight=0.0))

    def both(*arguments: Any) -> Any:
        return jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments), loss(*arguments, config=plain)

    (value, gradients), without = jax.jit(both)(*arguments)
    sizes = [max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree)) for tree in gradients]
    assert min(sizes[:2]) > 0
    assert sizes[2] == 0
    # whitened tokens that are nothing to each other differ by 2 in the mean square
    assert 0.5 * 1 < float(value - without) < 0.5 * 3


def test_equal_features_cost_nothing_and_equal_widths_need_no_projection() -> None:
    assert init_projections(jax.random.key(0), TEACHER, TEACHER, 2) == {}
    tokens = [(jax.random.normal(jax.random.key(n), (2, 5, 6)), jnp.ones((2, 1, 6))) for n in range(2)]
    assert feature_loss(tokens, tokens, {}, has_class_token=True) == 0
    other = [(patches, prefix.at[..., 0].set(4.0)) for patches, prefix in tokens]
    assert feature_loss(tokens, other, {}, has_class_token=False) == 0  # only the class token differs
    assert feature_loss(tokens, other, {}, has_class_token=True) > 0.1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher": None}, "loss.feature_weight needs teacher"),
        ({"model.patch_size": (4, 4)}, "the model has 2x2 patches of 8x8 pixels, the teacher 4x4 patches of 8x8"),
        ({"loss.teacher_layers": (1, 4)}, r"loss.teacher_layers \(1, 4\): the teacher has blocks 0 to 3"),
        ({"loss.feature_layers": (0, 2)}, r"loss.feature_layers \(0, 2\): the model has blocks 0 to 1"),
        ({"loss.teacher_layers": (3, 1)}, r"\(3, 1\) must ascend through the teacher's 4 blocks"),
        ({"loss.teacher_layers": 3}, "loss.feature_layers names 2 blocks and loss.teacher_layers 1"),
        ({"loss.feature_weight": -1}, "loss.feature_weight must be a number of at least 0, got -1"),
        ({"lora.rank": 2}, "leave lora out"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_in_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        build_config("digits", {**CHANGES, **changes}, "unused")
    assert "\n" not in str(refused.value)


def test_the_teachers_files_tell_what_it_is(tmp_path: Path) -> None:
    save(tmp_path / "teacher", *load(SHIPPED, num_heads=4, image_size=(8, 8)))
    told = {name: value for name, value in CHANGES.items() if name != "teacher_model"}
    config = build_config("digits", {**told, "teacher": str(tmp_path / "teacher")}, "unused")
    assert config.teacher_model == TEACHER
    with pytest.raises(ValueError, match=r"do not tell num_heads.*--set teacher_model=PRESET tells what it is"):
        build_config("digits", told, "unused")


def test_without_it_states_and_stored_configs_are_as_they_were() -> None:
    plain = build_config("digits", {name: v for name, v in CHANGES.items() if "feature" not in name and name[:4] not in
                                    ("teac", "loss")}, "unused")  # fmt: skip
    stored = plain.to_dict()
    for name in ("feature_weight", "feature_layers", "teacher_layers"):
        del stored["loss"][name]
    assert config_from_dict(stored) == plain
    state = jax.eval_shape(partial(init_state, config=plain.resolve(1000)), jax.random.key(0))
    own = jax.eval_shape(partial(init_params, model=plain.model), jax.random.key(0))
    assert jax.tree.structure(state.params) == jax.tree.structure(own)
