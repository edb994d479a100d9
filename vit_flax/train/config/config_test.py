"""The config as JSON, its changes by name, and what it refuses."""

import dataclasses
import json
import re
from typing import Any

import pytest

from vit_flax.config import ViTConfig
from vit_flax.presets import get_preset
from vit_flax.recipes import RECIPES, get_recipe
from vit_flax.train.config import ResolvedConfig, TrainConfig, config_from_json
from vit_flax.train.resuming import check_same_run, stored_config
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
    assert re.search(r"not measured|\d % (top-1|from image to text)", recipe.__doc__)


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
        ({"teacher": "vit.npz"}, "nothing is learnt from the teacher: loss.distillation=hard or soft, or loss."),
        ({"model.num_classes": 0}, "num_classes of 1 or more"),
        ({"data.mean": (0.1, 0.2)}, "data.mean has 2 numbers for 3 channels"),
        ({"mesh": {"data": -1, "fsdp": -1}}, "only one axis of the mesh may be -1"),
        ({"drop.drop_path_rate": 1.0}, "drop_path_rate must be at least 0 and less than 1"),
        ({"model": "vit_bas_patch16_224"}, "did you mean"),
        ({"data.augment.flip": "no"}, "data.augment.flip must be True or False, got 'no'"),
        ({"data.augment.aspect_ratio": 3}, "data.augment.aspect_ratio must be 2 numbers, got 3"),
        ({"data.augment.random_resized_crop": [1.0, 0.3]}, "must be two rising positive numbers, got (1.0, 0.3)"),
        ({"data.crop_mode": "centre"}, "data.crop_mode must be one of center, squash, border, pad, none, got 'centre'"),
        ({"mixing.erasing_area": 0.3}, "mixing.erasing_area must be 2 numbers, got 0.3"),
        ({"ema": {"warmup_gamma": "x"}}, "ema.warmup_gamma must be a number, got 'x'"),
        ({"loss.target_threshold": "half"}, "loss.target_threshold must be a number or None, got 'half'"),
        ({"loss.feature_weight": "x"}, "loss.feature_weight must be a number of at least 0, got 'x'"),
        ({"optimizer.decay": 3}, "optimizer.decay must be text or (pattern, value) pairs, got 3"),
        ({"scan": 1}, "scan must be True or False, got 1"),
        ({"model.qkv_bias": "no"}, "qkv_bias must be True or False, got 'no'"),
        ({"out": 2024}, 'out must be text or None, got 2024; as text it is "2024", on a command line \'"2024"\''),
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


def test_balanced_weights_are_sklearns_and_torchs() -> None:
    counts = [5, 1, 2, 2, 10, 4, 3, 3, 8, 2]
    config = SMALL.replace({"loss.class_weights": "balanced", "data.batch_size": 4}).resolve(40, counts)
    assert config.loss.class_weights == tuple(40 / (10 * count) for count in counts)
    several = {"data.multi_label": True, "loss.name": "binary", "loss.pos_weight": "balanced", "data.batch_size": 4}
    assert SMALL.replace(several).resolve(40, counts).loss.pos_weight == tuple((40 - count) / count for count in counts)
    with pytest.raises(ValueError, match="balanced needs training images of every class"):
        SMALL.replace({"loss.class_weights": "balanced"}).resolve(400)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.multi_label": True}, "data.multi_label needs loss.name=binary"),
        (
            {"data.multi_label": True, "loss.name": "binary", "loss.label_smoothing": 0.1},
            "has no label smoothing: set loss.label_smoothing=0",
        ),
        ({"loss.pos_weight": 2.0}, "loss.pos_weight needs loss.name=binary; softmax has loss.class_weights"),
        ({"loss.class_weights": (1.0, 2.0)}, "loss.class_weights has 2 numbers for 10 classes"),
        ({"loss.class_weights": "equal"}, "loss.class_weights must be one of balanced, got 'equal'"),
        ({"loss.class_weights": (1,) * 9 + (-1,)}, "loss.class_weights must be a positive number, got -1"),
        ({"data.sampler": "weighted"}, "data.sampler must be one of shuffle, balanced"),
        ({"early_stopping.patience": 0}, "early_stopping.patience must be an integer of at least 1"),
        ({"data.image_size": (9, 9)}, "set model.image_size"),
    ],
)
def test_labels_and_losses_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        SMALL.replace(changes)


def test_a_resolved_config_is_a_type_of_its_own() -> None:
    resolved = SMALL.resolve(1000)
    assert type(resolved) is ResolvedConfig
    assert (resolved.steps_per_epoch, resolved.warmup_steps) == (7, 0)
    assert stored_config(json.loads(resolved.to_json())) == resolved
    assert type(resolved.replace(seed=3)) is ResolvedConfig
    with pytest.raises(ValueError, match="steps must be an integer of at least 1"):
        resolved.replace(epochs=2)
    # what runs stored before there was the type
    old = resolved.to_dict()
    for name in ("steps_per_epoch", "early_stopping"):
        del old[name]
    for name in ("multi_label", "sampler"):
        del old["data"][name]
    for name in ("class_weights", "pos_weight"):
        del old["loss"][name]
    old["data"]["eval_split"] = "test"
    check_same_run(stored_config(old), resolved)
