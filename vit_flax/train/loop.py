"""The training loop: data, steps, evaluation, checkpoints, resuming; it knows no mathematics."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vit_flax.convert import ConversionError
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.train.checkpoints import CheckpointError, Checkpoints, barrier
from vit_flax.train.compilation import (
    abstract_state,
    compile_eval,
    compile_merge,
    compile_step,
    create_state,
    model_shardings,
)
from vit_flax.train.config import TrainConfig
from vit_flax.train.data.pairs import write_tokenizer
from vit_flax.train.data.prepared import preprocessing_of
from vit_flax.train.history import History
from vit_flax.train.inputs import open_inputs
from vit_flax.train.interrupts import told_to_stop
from vit_flax.train.results import RESULTS, count_parameters, draw_results, write_results
from vit_flax.train.resuming import check_same_run, stored_config
from vit_flax.train.runlog import LOG, RunLog, format_seconds
from vit_flax.train.scoring import Scores, evaluate, score_name
from vit_flax.train.sharding import make_mesh, place_batch, place_params
from vit_flax.train.throughput import Throughput
from vit_flax.train.weights import (
    check_exportable,
    digest_of,
    export,
    export_adapter,
    exported_params,
    initial_params,
    teacher_params,
)

CONFIG = "train.json"  # the run's config, which `vit-flax train` takes
# Steps dispatched before the first of them must be done: the later ones' batches are transferred meanwhile, so that
# nothing else needs to prefetch batches to the device.
_AHEAD = 2
_SHOWN = 8


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the step, the images and the last good checkpoint."""


class FileError(RuntimeError):
    """A file could not be written or read; the message names it and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    finished: bool  # False: stopped by SIGTERM or Ctrl-C, its state saved
    scores: dict[str, float]  # of the last evaluation
    split: str  # of `scores`
    test: dict[str, dict[str, float]] | None = None  # scores of the test split with the 'best' and the 'final' weights


class Run:
    """A training run in the folder `config.out`; constructed again, it resumes from the last checkpoint.

    Raises:
        ValueError: the config, the data or what is in the folder do not fit.
        FileError: the folder cannot be written.
    """

    def __init__(self, config: TrainConfig, *, profile: bool = False, quiet: bool = False) -> None:
        self.out, self.profile = _folder(config), profile
        check_exportable(config)  # now, not after hours
        self.is_first = jax.process_index() == 0
        self.mesh = make_mesh(config.mesh)
        self.config, self.inputs = open_inputs(config, self.mesh)
        self.step_function = compile_step(self.config, self.mesh)
        self.eval_function = compile_eval(self.config, self.mesh)
        self._merge = compile_merge(self.config, self.mesh)
        with self._writing():
            self.out.mkdir(parents=True, exist_ok=True)
            self.checkpoints = Checkpoints(self.out / "checkpoints", config.keep_checkpoints)
        self._init_digest: str | None = None  # with config.lora, of the initial weights
        self.start, self.state, self.history = self._begin()
        with self._writing():
            if self.is_first:
                (self.out / CONFIG).write_text(config.to_json() + "\n", "utf-8")
            folder = self.out if self.is_first else None
            self.log = RunLog(folder, self.start, self.config.steps, self.config.steps_per_epoch, quiet)
        self._evaluated: Scores | None = None
        self._pending: list[tuple[int, Any, np.ndarray]] = []
        self._throughput = Throughput(self.config)

    def _begin(self) -> tuple[int, Any, History]:
        """Returns the step of the restored (or initial) state, the state, and the history until then."""
        found = self.checkpoints.newest()
        if found is None:
            self.inputs.check(self.config.data.max_bad_share)
            state = create_state(self.config, self.mesh, self._initial_params())
            if (teacher := teacher_params(self.config)) is not None:
                shardings = jax.tree.map(lambda x: x.sharding, abstract_state(self.config, self.mesh).teacher)
                state = state.replace(teacher=place_params(teacher, shardings))
            return 0, state, History(self.inputs.eval_split)
        step, run = found
        check_same_run(stored_config(run["config"]), self.config, step)
        state = self.checkpoints.restore(step, abstract_state(self.config, self.mesh).replace(frozen=None))
        if self.config.lora is not None:  # checkpoints do not hold frozen parameters
            state = state.replace(frozen=create_state(self.config, self.mesh, self._initial_params(run)).frozen)
        self.inputs.train.set_state(run["data"])
        return step, state, History.restore(run, self.inputs.eval_split, self.config.early_stopping)

    def _initial_params(self, run: Mapping[str, Any] | None = None) -> PyTree:
        """Returns the initial parameters, None for random ones; a resumed `run` must find the same again."""
        params = initial_params(self.config)
        if self.config.lora is not None and params is not None:
            self._init_digest = digest_of(params)
            if run is not None and run["init_digest"] != self._init_digest:
                raise ValueError(
                    f"{self.config.init_from}: holds other weights than when the run in {self.out} began, and its "
                    "adapters belong to those: put them back, or take another folder (--out)"
                )
        return params

    def run(self) -> Result:
        """Trains to the end, or until SIGTERM or Ctrl-C.

        Raises:
            NonFiniteLoss: the loss became NaN or infinite.
            CheckpointError: a checkpoint could not be written.
            FileError: another file could not.
        """
        with self._writing():
            return self._train()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Converts OSError into FileError."""
        try:
            yield
        except OSError as error:
            said = f"{error.filename or self.out}: {error.strerror or error}"
            if "checkpoints" in vars(self):
                with contextlib.suppress(CheckpointError):
                    self.checkpoints.wait()
                said += f"; {self.checkpoints.last_good()}"
            raise FileError(said) from error

    def _train(self) -> Result:
        config, total, step = self.config, self.config.steps, self.start
        self._tell_beginning()
        began, before = time.monotonic(), self.history.seconds
        with (
            told_to_stop(self.log.say) as is_told,
            contextlib.closing(self.log),
            self.log.own_lines(),
            contextlib.closing(self.inputs),
        ):
            if step and step % config.eval_every == 0 and self.history.scores.get("step") != step:
                self._evaluate(step)  # an evaluation was due when the run was stopped
            while step < total and not self.history.stopped:
                step += 1
                with self._profiled(step):
                    self._take_step(step)
                is_last, stopping = step == total, is_told(step)
                due_eval, due_save = (is_last or step % n == 0 for n in (config.eval_every, config.checkpoint_every))
                if step % config.log_every == 0 or due_eval or due_save or stopping:
                    self._flush()
                if due_eval and not stopping:
                    self._evaluate(step)
                self.history.seconds = before + time.monotonic() - began
                if due_save or stopping or self.history.stopped:
                    self._save(step)
                if stopping and not (is_last or self.history.stopped):
                    self.checkpoints.close()
                    return Result(step, False, self.history.scores, self.inputs.eval_split)
            self.checkpoints.close()
            test = self._finish(step)
        return Result(step, True, self.history.scores, self.inputs.eval_split, test)

    def _tell_beginning(self) -> None:
        if self.start:
            self.log.say(f"going on from {self.checkpoints.path(self.start)}")
        self.log.say(self.inputs.describe())

    def _take_step(self, step: int) -> None:
        batch = next(self.inputs.train)
        placed = place_batch({name: batch[name] for name in ("image", "label")}, self.mesh)
        if step > self.start + 1:
            self.state, scalars = self.step_function(self.state, placed)
            self._throughput.count += 1
        else:
            self.log.say("compiling the training step ...")
            began = time.monotonic()
            self.state, scalars = jax.block_until_ready(self.step_function(self.state, placed))
            self.log.say(f"the first step is done, after {format_seconds(time.monotonic() - began)}")
            self._throughput.restart()  # compilation is not counted
            self.log.restart_clock(step)
        self._pending.append((step, scalars, batch["index"]))
        if len(self._pending) > _AHEAD:
            jax.block_until_ready(self._pending[-1 - _AHEAD][1])

    def _flush(self) -> None:
        """Fetches the scalars of the steps since the last time, logs them, and stops the run at a non-finite loss."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        losses = [float(scalars["loss"]) for _, scalars, _ in pending]
        for (step, _, index), loss in zip(pending, losses, strict=True):
            if not math.isfinite(loss):
                self._stop_at(step, loss, index)
        self.checkpoints.check()
        step, scalars, _ = pending[-1]
        speed = self._throughput.measure()
        values = {"loss": sum(losses) / len(losses), "learning_rate": float(scalars["learning_rate"])}
        values |= {"grad_norm": float(scalars["grad_norm"]), **speed}
        self.log.write(step, "train", values)
        self.log.progress(step, values)

    def _stop_at(self, step: int, loss: float, index: np.ndarray) -> None:
        with contextlib.suppress(RuntimeError):
            self.checkpoints.wait()
        names = self.inputs.train.describe(index)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        self.log.write(step, "not_finite", {"loss": str(loss), "index": [int(i) for i in index], "images": names})
        raise NonFiniteLoss(
            f"the loss is {loss} at step {step}, on the images {', '.join(names[:_SHOWN])}{more} (all in {LOG}); "
            f"{self.checkpoints.last_good()}"
        )

    @property
    def _params(self) -> Any:
        """The parameters that evaluation and export use."""
        return self._merge(self._trained, self.state.frozen)

    @property
    def _trained(self) -> Any:
        return self.state.params if self.state.ema is None else self.state.ema

    def _score(self, loader: Any, params: PyTree) -> Scores:
        with self._throughput.paused():
            self._throughput.measure_peak()
            return evaluate(loader, self.eval_function, params, self.mesh)

    def _evaluate(self, step: int) -> None:
        split = self.inputs.eval_split
        self._evaluated = found = self._score(self.inputs.evaluation, self._params)
        self.log.write(step, "eval", {"split": split, **found.numbers})
        self.log.say(f"step {step}: {split} {found.describe()}")
        if self.history.add(step, found.numbers, score_name(self.config), self.config.early_stopping):
            with self._throughput.paused():
                self._export("best", self._params)
        if self.history.stopped:
            self.log.say(f"step {step}: no improvement in {self.history.waited} evaluations, the run ends early")

    def _export(self, name: str, params: PyTree) -> None:
        try:
            notes = export(self.out / name, self.config.model, params, self.config.export_layout, self._prepared)
        except ConversionError as error:  # that the layout holds the model was checked at the start
            raise FileError(f"{error}; {self.checkpoints.last_good()}") from error
        if self.config.has_pairs and self.is_first:
            write_tokenizer(self.config.data, self.out / name)
        for note in notes if name == "final" else ():
            self.log.say(f"{self.out / name}: {note}")
        if self.config.lora is not None:
            folder = self.out / f"{name}_adapter"
            fault = export_adapter(folder, self.config, self._trained, self.state.frozen, params, self._prepared)
            if fault and name == "final":
                self.log.say(f"{folder} is not written, the merged weights in {name}/ are: {fault}")

    @property
    def _prepared(self) -> Preprocessing:
        """Evaluation preprocessing and class names, exported with the weights."""
        model = self.config.model
        return preprocessing_of(self.config.data, model.image_size, model.in_chans, self.inputs.class_names)

    def _save(self, step: int) -> None:
        with self._throughput.paused():
            run = {"config": self.config.to_dict(), "data": self.inputs.train.get_state()}
            run |= {} if self._init_digest is None else {"init_digest": self._init_digest}
            self.checkpoints.save(step, self.state.replace(frozen=None), run | self.history.to_dict())

    def _finish(self, step: int) -> dict[str, Any] | None:
        """Writes final weights, results and plots; returns the scores of the test split."""
        if self._evaluated is None and not (self.out / RESULTS).exists():
            self._evaluate(step)  # interrupted between the last checkpoint and the results
        self._export("final", self._params)
        if self._evaluated is None:
            return None  # the run had finished before
        test = self._test(step)
        if not self.is_first:
            return test
        names, split = self.inputs.class_names, self.inputs.eval_split
        found = {"step": step, "epochs": step / self.config.steps_per_epoch, "stopped_early": self.history.stopped}
        found |= {"split": split, "scores": self.history.scores, "best": self.history.best, "test": test}
        found |= {"images": self.inputs.counts(), "bad_images": len(self.inputs.train.bad)}
        found |= {"seconds": self.history.seconds, **count_parameters(self.config, self.state)}
        write_results(self.out, self.config, found, self._evaluated, names)
        try:
            draw_results(self.out, self.config, split, self._evaluated, names)
        except ImportError:
            self.log.say("pictures are not drawn: pip install 'vit-linen[train]'")
        return test

    def _test(self, step: int) -> dict[str, Any] | None:
        """Returns the scores of the test split with the best and the final weights, where nothing was chosen on it."""
        if self.inputs.test is None:
            return None
        barrier("exported")  # the first process writes the best weights, which all processes read
        test = {}
        best = self.history.best.get("step")
        for name in ("best", "final"):
            if name == "final" and best == step:
                test[name] = test["best"]
                continue
            params = self._params if best == step or name == "final" else self._placed(exported_params(self.out / name))
            test[name] = self._score(self.inputs.test, params)
            at = best if name == "best" else step
            self.log.say(f"test, {name} weights (step {at}): {test[name].describe()}")
        found = {name: scores.numbers for name, scores in test.items()}
        self.log.write(step, "test", found)
        return found

    def _placed(self, params: PyTree) -> Any:
        return place_params(params, model_shardings(self.config, self.mesh))

    @contextlib.contextmanager
    def _profiled(self, step: int) -> Iterator[None]:
        """Traces a few steps after the first, which compiles."""
        first = self.start + 3
        if self.profile and step == first:
            jax.profiler.start_trace(str(self.out / "profile"))
        yield
        if self.profile and step == min(first + 4, self.config.steps) and step >= first:
            jax.block_until_ready(self._pending[-1][1] if self._pending else self.state.step)
            jax.profiler.stop_trace()
            self.log.say(f"wrote a trace of steps {first} to {step} to {self.out / 'profile'}")


def _folder(config: TrainConfig) -> Path:
    if config.out is None:
        raise ValueError("a run needs a folder: out")
    folder = Path(config.out).absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; out must be a folder")
    return folder
