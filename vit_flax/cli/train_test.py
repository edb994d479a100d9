"""Keys of `vit-flax train --set`, and the errors that the command silences."""

import dataclasses
import functools
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from vit_flax.cli.options import assignment
from vit_flax.cli.train import build_config
from vit_flax.config import ModelConfig, ViTConfig
from vit_flax.models import build_model
from vit_flax.pretrained import save
from vit_flax.recipes import RECIPES, get_recipe
from vit_flax.train.config import TrainConfig
from vit_flax.train.config.nested import dotted_paths
from vit_flax.train.config.synonyms import SYNONYMS
from vit_flax.train.state import init_params

# A task whose exception no code of Python's raised, one that Orbax's code raised, and one of nobody's.
LEFT_BEHIND = """
import asyncio, gc, sys
from vit_flax.cli.train import _keep_to_one_line

_keep_to_one_line()

def fail(error):
    raise error

async def leave(set_by_cpp, error):
    loop = asyncio.get_running_loop()
    if set_by_cpp:
        loop.create_future().set_exception(error)
    else:
        async def work():
            fail(error)
        loop.create_task(work())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

asyncio.run(leave(True, ValueError("OUT_OF_RANGE: File too large")))
asyncio.run(leave(False, KeyError("somebody else's")))
async def never():
    pass
never()
gc.collect()
"""


def test_what_orbax_leaves_behind_is_not_told_after_the_runs_own_line() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, check=True)
    assert "OUT_OF_RANGE" not in done.stderr
    assert "never awaited" not in done.stderr
    assert "somebody else's" in done.stderr  # whatever is nobody's is still told


def _leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns every path of a config with its value, of a nested config that may be absent its defaults."""
    found = {}
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if value is None and field.name in getattr(config, "NESTED", {}):
            value = config.NESTED[field.name]()
        if isinstance(value, ModelConfig):  # its fields and those of its parts, by both their names
            found |= {f"{path}.{name}": inner for name, inner in value.fields().items()}
        found |= _leaves(value, f"{path}.") if dataclasses.is_dataclass(value) else {path: value}
    return found


def _adapted(folder: Path) -> dict[str, Any]:
    """Returns what a recipe needs that begins with a checkpoint: one of a tiny model, and the digits."""
    model = ViTConfig(
        image_size=(8, 8), patch_size=(4, 4), in_chans=1, embed_dim=8, depth=1, num_heads=2, num_classes=3
    )
    params = init_params(jax.random.key(0), model)
    save(folder / "weights", build_model(model), params)
    return {"checkpoint": str(folder / "weights"), "folder": "", "data": "digits"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_path_of_a_recipe_can_be_set_to_what_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, made = get_recipe(name), {}

    @functools.wraps(recipe)
    def once(**arguments: Any) -> TrainConfig:  # a recipe may read a checkpoint each time
        key = repr(arguments)
        return made[key] if key in made else made.setdefault(key, recipe(**arguments))

    monkeypatch.setitem(RECIPES, name, once)
    needed = _adapted(tmp_path) if name in ("finetune", "linear_probe") else {}
    config = build_config(name, needed, None)
    leaves = _leaves(config)
    if config.has_pairs or config.optimizer.train:  # which leave no place for adapters
        leaves = {path: value for path, value in leaves.items() if path.split(".")[0] != "lora"}
    assert {"data.mean", "mesh.data", "model.image_size", "data.augment.flip", "ema.decay"} <= leaves.keys()
    own = {key: p.default for key, p in inspect.signature(get_recipe(name)).parameters.items() if key not in needed}
    for path, value in {**leaves, **own}.items():
        _, read = assignment(f"{path}={value!r}")
        changed = build_config(name, {**needed, path: read}, None)
        absent = path.split(".")[0]
        if "." in path and getattr(config, absent) is None:  # was absent, and is there with its defaults now
            changed = changed.replace({absent: None})
        assert changed == config, path


@pytest.mark.parametrize(
    ("recipe", "name", "said"),
    [
        ("finetune", "batch_size", "did you mean 'data.batch_size'?"),
        ("finetune", "lr", "did you mean 'optimizer.learning_rate'?"),
        ("finetune", "num_classes", "the classes come from the folder"),
        ("finetune", "nb_classes", "the classes come from the folder"),
        ("finetune", "data.batchsize", "did you mean 'data.batch_size'?"),
        ("finetune", "optimizer.lr", "did you mean 'optimizer.learning_rate'?"),
        ("finetune", "foldr", "did you mean 'folder'?"),
        ("linear_probe", "num_epochs", "did you mean 'epochs'?"),
        ("linear_probe", "nonsense", "there are checkpoint, folder"),
        ("digits", "num_classes", "did you mean 'model.num_classes'?"),
        ("digits", "image_size", "did you mean 'model.image_size'?"),
        ("deit_s16", "flip", "did you mean 'data.augment.flip'?"),
        ("deit_s16", "image_sise", "did you mean 'model.image_size'?"),
        ("deit_s16", "output_dir", "did you mean 'out'?"),
    ],
)
def test_a_shortcut_or_a_misspelt_name_is_told_the_right_path(recipe: str, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        build_config(recipe, {name: 3}, None)
    assert repr(name) in str(raised.value)


def test_the_words_of_other_libraries_lead_to_fields() -> None:
    assert set(SYNONYMS.values()) <= set(dotted_paths(TrainConfig))


def test_jsons_words_are_values_and_other_words_are_no_truth(tmp_path: Path) -> None:
    flipped = build_config("digits", dict([assignment("data.augment.flip=true")]), str(tmp_path))
    assert flipped.data.augment.flip is True
    for told in ("data.augment.flip=false", "ema=null", "model.qkv_bias=false"):
        path, value = assignment(told)
        config = flipped.replace({path: value})
        for part in path.split("."):
            config = getattr(config, part)
        assert config is value
        assert value in (False, None)
    with pytest.raises(ValueError, match=r"data\.augment\.flip must be True or False, got 'no'"):
        build_config("digits", dict([assignment("data.augment.flip=no")]), str(tmp_path))
    for told, said in (("folder=2024", "folder must be text, got 2024"), ("multi_label=no", "must be True or False")):
        with pytest.raises(ValueError, match=said):
            build_config("finetune", {"checkpoint": "m", "folder": "f", **dict([assignment(told)])}, str(tmp_path))
