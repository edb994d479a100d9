"""The config as JSON, its changes by name, and what it refuses."""

import dataclasses
import re
from typing import Any

import pytest

from vit_flax.config import ViTConfig
from vit_flax.presets import get_preset
from vit_flax.recipes import RECIPES, get_recipe
from vit_flax.train.config import TrainConfig, config_from_json
from vit_flax.train.loop import check_same_run
from vit_flax.train.weights import check_exportable

SMALL = TrainConfig(
    model=ViTConfig(image_size=(8, 8), patch_size=(2, 2), embed_dim=16, num_heads=2, num_classes=10), epochs=2
)
PLAIN = [name for name in RECIPES if name not in ("finetune", "linear_probe")]


@pytest.mark.parametrize("name", PLAIN)
def test_recipes_survive_json_and_say_what_was_measured(name: str) -> None:
    recipe = get_recipe(name)
    config = recipe()
    assert config_from_json(config.to_json()) == config
    hash(config)
    check_exportable(config)
    assert recipe.__doc__
    assert re.search(r"not measured|\d % top-1", recipe.__doc__)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batchsize": 64}, "no field 'data.batchsize'; did you mean 'data.batch_size'?"),
        ({"batchsize": 64}, "no field 'batchsize'; did you mean 'data.batch_size'?"),
        ({"epochs": "nan"}, "epochs must be a positive number, got 'nan'"),
        ({"epochs": 0}, "epochs must be a positive number, got 0"),
        ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate must be a number of at least 0, got nan"),
        ({"optimizer.clip_norm": "little"}, "optimizer.clip_norm must be a positive number, got 'little'"),
        ({"data.std": (0.5, 0, 0.5)}, "data.std must be a positive number, got 0"),
        ({"optimiser": {}}, "no field 'optimiser'; did you mean 'optimizer'?"),
        ({"data.augment.flipp": True}, "did you mean 'data.augment.flip'?"),
        ({"model.dept": 3}, "did you mean 'depth'?"),
        ({"ema.dacay": 0.9}, "did you mean 'ema.decay'?"),
        ({"seed.x": 1}, "seed has no fields of its own"),
        ({"optimizer.name": "adam"}, "optimizer.name must be one of adamw, lamb, muon, sgd, got 'adam'"),
        ({"accumulation": 3}, "data.batch_size 128 is not divisible by accumulation 3"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"steps": 3, "epochs": 2}, "give one of epochs and steps"),
        ({"keep_checkpoints": 1}, "keep_checkpoints must be an integer of at least 2"),
        ({"precision": "fp8"}, "precision must be one of float32, bf16"),
        ({"loss.distillation": "hard"}, "distillation needs teacher"),
        ({"model.num_classes": 0}, "num_classes of 1 or more"),
        ({"data.mean": (0.1, 0.2)}, "data.mean has 2 numbers for 3 channels"),
        ({"mesh": {"data": -1, "fsdp": -1}}, "only one axis of the mesh may be -1"),
        ({"drop.drop_path_rate": 1.0}, "drop_path_rate must be at least 0 and less than 1"),
        ({"model": "vit_bas_patch16_224"}, "did you mean"),
    ],
)
def test_bad_values_are_told_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        SMALL.replace(changes)
    assert "\n" not in str(raised.value)


def test_changes_by_dotted_names() -> None:
    config = SMALL.replace({"data.batch_size": 64, "ema.decay": 0.9, "model.depth": 3, "steps": 7})
    assert (config.data.batch_size, config.model.depth, config.steps, config.epochs) == (64, 3, 7, None)
    assert config.ema is not None
    assert config.ema.decay == 0.9
    assert SMALL.replace(model="vit_tiny_patch16_224").model == get_preset("vit_tiny_patch16_224").config


def test_durations_in_steps() -> None:
    config = SMALL.replace({"schedule.warmup_epochs": 0.5, "data.batch_size": 100}).resolve(1050)
    assert (config.steps, config.schedule.warmup_steps, config.eval_every) == (20, 5, 10)
    assert config.resolve(999) == config
    with pytest.raises(ValueError, match="99 training images are fewer than"):
        config.resolve(99)


def test_a_run_goes_on_only_as_what_it_was() -> None:
    check_same_run(SMALL, SMALL.replace({"mesh.fsdp": 2, "data.workers": 3, "log_every": 1, "out": "elsewhere"}))
    with pytest.raises(
        ValueError, match=r"another run: data\.augment\.flip was False and is True; seed was 0 and is 1"
    ):
        check_same_run(SMALL, SMALL.replace({"data.augment.flip": True, "seed": 1}))


def test_every_field_of_a_config_is_described_by_name_and_default() -> None:
    for nested in TrainConfig.NESTED.values():
        assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(nested))
