"""`vit-flax train`: trains by a recipe, or resumes a run."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vit_flax.cli.options import assignment
from vit_flax.suggestions import did_you_mean, nearest

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands
    from vit_flax.config import ViTConfig
    from vit_flax.train.config import TrainConfig

_CONVERTED = ("source_grid", "resample")  # arguments of `vit_flax.load` that no run takes
TERMINATED = 75  # EX_TEMPFAIL: run it again
EXAMPLE = """example:
  vit-flax train digits --out runs/digits
  vit-flax train fashion_mnist --set folder=/usr/share/datasets/fashion-mnist --set epochs=2 --out runs/fashion

A second run with the same folder resumes from the last checkpoint; DIR/train.json is the run's own config, which this
command takes as well. Exit status: 0 trained to the end; 1 stopped (a loss that is not finite, a full disk); 2 unusable
input; 75 stopped by SIGTERM or Ctrl-C after the state was saved."""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "train",
        help="train a model by a recipe",
        description="Trains a model by a recipe of vit_flax.recipes, or a config file of an earlier run.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="a recipe's name, or a .json file with a TrainConfig")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=assignment,
        metavar="KEY=VALUE",
        dest="changes",
        help="a parameter of the recipe or a field of its config, such as data.batch_size=64; may be repeated",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of checkpoints, logs and weights (default: runs/RECIPE)")
    parser.add_argument("--profile", action="store_true", help="write a trace of a few steps to DIR/profile")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0 of several; 'auto' on Cloud TPU, SLURM, Kubernetes",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="number of processes of the job")
    parser.add_argument("--process", type=int, metavar="I", help="index of this process, from 0")
    # what only a conversion is told
    convert = "vit-flax convert FILE NEW"
    parser.set_defaults(run=run, elsewhere={name: f"{convert} --{name.replace('_', '-')}" for name in _CONVERTED})


def build_config(recipe: str, changes: Mapping[str, object], out: str | None) -> TrainConfig:
    """Returns the config of a recipe's name or a .json file, with changes; parameters of the recipe are passed to it.

    Raises:
        ValueError: no such recipe or key (the nearest is suggested), or a parameter of the recipe is missing.
    """
    from vit_flax.config.field_types import check_arguments
    from vit_flax.recipes import get_recipe
    from vit_flax.train.config import config_from_json

    if changes.get("teacher") is not None and not any(name.startswith("teacher_model") for name in changes):
        changes = {**changes, "teacher_model": _model_of(str(changes["teacher"]))}
    if recipe.endswith(".json"):
        with open(recipe, encoding="utf-8") as file:
            try:
                config = config_from_json(file.read())
            except ValueError as error:
                raise ValueError(f"{recipe}: {error}") from error
    else:
        function = get_recipe(recipe)
        parameters = inspect.signature(function).parameters
        own = {name: changes[name] for name in changes if name in parameters}
        for name in changes.keys() - own.keys():
            _check_name(recipe, name, parameters)
        missing = [name for name, p in parameters.items() if p.default is p.empty and name not in own]
        if missing:
            raise ValueError(f"recipe {recipe} needs {' '.join(f'--set {name}=...' for name in missing)}")
        if "source" in parameters and "source" not in own:
            # the source's options determine its classes
            data = {name.partition(".")[2]: changes[name] for name in changes if name.startswith("data.")}
            own["source"] = {name: value for name, value in data.items() if "." not in name}
        if "told" in parameters and "told" not in own:  # fields of the model that a bare weights file lacks
            own["told"] = {name[len("model.") :]: changes[name] for name in changes if name.startswith("model.")}
        check_arguments(function, own)
        config = function(**own)
        changes = {name: value for name, value in changes.items() if name not in own}
    name = os.path.basename(recipe).removesuffix(".json")
    out_folder = out or changes.get("out") or config.out or os.path.join("runs", name)
    return config.replace({**changes, "out": out_folder})


def _model_of(teacher: str) -> ViTConfig:
    """Returns the config of a teacher's checkpoint.

    Raises:
        ValueError: its config cannot be determined.
    """
    from vit_flax.config import ViTConfig
    from vit_flax.convert import Wish, open_checkpoint
    from vit_flax.reading import read_model

    try:
        wish = Wish(tower="image")
        found = read_model(open_checkpoint(teacher, wish), wish).config
    except ValueError as error:
        raise ValueError(f"teacher {teacher}: {error}; --set teacher_model=PRESET tells what it is") from error
    assert isinstance(found, ViTConfig)  # as the wish says
    return found


def _check_name(recipe: str, name: str, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError for a name that is neither a recipe's parameter nor the path of a field of its config."""
    from vit_flax.train.config import TrainConfig
    from vit_flax.train.config.nested import dotted_paths, suggest

    head, dot, _ = name.partition(".")
    if name in dotted_paths(TrainConfig) or (dot and head in ("model", "teacher_model")):  # of any family
        return
    said = f"recipe {recipe} has no {'field' if dot else 'parameter'} {name!r}"
    near = suggest(TrainConfig, name)
    if (
        near == ["model.num_classes"]
        and "folder" in parameters
        and parameters["folder"].default is inspect.Parameter.empty
    ):
        raise ValueError(f"{said}; the classes come from the folder")
    like = nearest(name, parameters, cutoff=0.7)
    if like and not (near and near[0].split(".")[-1] == name):
        near = like
    if near:
        raise ValueError(f"{said}; {did_you_mean(near)}")
    names = [*parameters, *(field.name for field in dataclasses.fields(TrainConfig))]
    raise ValueError(f"{said}; there are {', '.join(dict.fromkeys(names))}")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    config = build_config(options.recipe, dict(options.changes), options.out)  # before JAX: mistakes are told at once

    import jax

    from vit_flax.train.distributed import announce_abort, explain, leave, start

    if start(options.coordinator, options.processes, options.process):
        announce_abort("vit-flax train")

    from vit_flax.train.checkpoints import CheckpointError
    from vit_flax.train.loop import FileError, NonFiniteLoss, Run

    _keep_to_one_line()
    try:
        result = Run(config, profile=options.profile, quiet=options.quiet).run()
    except (CheckpointError, FileError, NonFiniteLoss) as error:
        print(f"vit-flax train: {error}", file=sys.stderr)
        return 1
    except jax.errors.JaxRuntimeError as error:
        lost = explain(error)
        if lost is None:
            raise
        print(f"vit-flax train: {lost}", file=sys.stderr, flush=True)
        leave()
        return 1
    if options.json:
        answer = {**result.scores, "split": result.split, "test": result.test, "step": result.step}
        print(json.dumps({**answer, "finished": result.finished, "out": config.out}))
    if not result.finished:
        said = f"told to stop: saved step {result.step}; run it again to go on"
        print(f"vit-flax train: {said}", file=sys.stderr)
        return TERMINATED
    if not options.json:
        for name, scores in (result.test or {}).items():
            print(f"test, {name} weights: {_score(scores)}")
        print(f"{result.split} {_score(result.scores)} after {result.step} steps; weights in {config.out}/final")
    return 0


def _score(scores: Mapping[str, float]) -> str:
    if "accuracy" in scores:
        return f"top-1 {scores['accuracy']:.2%}"
    return f"mAP {scores['mean_average_precision']:.2%}"


def _keep_to_one_line() -> None:
    """Silences errors of Orbax's tasks and callbacks after a failed checkpoint, which the run reports itself."""
    if os.environ.get("VIT_FLAX_DEBUG"):
        return
    sys.unraisablehook = _of_a_callback
    # Orbax had created coroutines for writes that the failure cancelled
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    logging.getLogger("asyncio").addFilter(lambda record: not _is_of_orbax(record))


def _of_a_callback(left: Any) -> None:
    # TensorStore's callback of a write runs after the event loop was closed by another write's failure
    if not (isinstance(left.exc_value, RuntimeError) and str(left.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(left)


def _is_of_orbax(record: logging.LogRecord) -> bool:
    if not record.exc_info:
        return False
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(record.exc_info[2])]
    # of several failed writes Orbax awaits the first; TensorStore, in C++, sets the others' futures as well, whose
    # errors have no frame but asyncio's
    in_cpp = all(f"{os.sep}asyncio{os.sep}" in file for file in files)
    return in_cpp or any(f"{os.sep}orbax{os.sep}" in file for file in files)
