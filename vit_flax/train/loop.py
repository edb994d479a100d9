"""The training loop: reads, steps, evaluates, writes and goes on where it was; it knows no mathematics."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_flax.convert import ConversionError
from vit_flax.train.checkpoints import CheckpointError, Checkpoints
from vit_flax.train.config import TrainConfig, config_from_dict
from vit_flax.train.data import open_source
from vit_flax.train.data.loader import make_loader
from vit_flax.train.flops import peak_flops, training_flops
from vit_flax.train.lower import abstract_state, compile_eval, compile_step, create_state
from vit_flax.train.pictures import draw_confusion, draw_curves
from vit_flax.train.runlog import LOG, RunLog, read_log
from vit_flax.train.sharding import data_share, make_mesh, place_batch, place_params
from vit_flax.train.weights import check_exportable, export, initial_params, teacher_params

RESULTS = "results.json"
# Steps given to the device before the first of them must be done: the batches of the later ones travel meanwhile, so
# that nothing else needs to bring batches to the device ahead of their step.
_AHEAD = 2
_SHOWN = 8
# fields that change where and how often, but not what is computed: a run may go on with others
_FREE = {"mesh", "sharding", "eval_every", "checkpoint_every", "keep_checkpoints", "log_every", "peak_flops", "out",
         "export_layout", "remat", "scan", "data.path", "data.workers", "data.threads", "data.prefetch"}  # fmt: skip


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the step, the images and the last good checkpoint."""


class FileError(RuntimeError):
    """The run could not write a file, or not read one; the message names it and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    finished: bool  # False: stopped by SIGTERM, its state saved
    scores: dict[str, Any]  # of the last evaluation


class Run:
    """A training run in the folder `config.out`; run again, it goes on from the last checkpoint.

    Raises:
        ValueError: the config, the data or what is in the folder do not fit.
    """

    def __init__(self, config: TrainConfig, *, profile: bool = False, quiet: bool = False) -> None:
        if config.out is None:
            raise ValueError("a run needs a folder: out")
        check_exportable(config)  # now, not after hours
        self.out, self.profile = Path(config.out).absolute(), profile
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out}: is a file; out must be a folder")
        self.is_first = jax.process_index() == 0
        self.mesh = make_mesh(config.mesh)
        model, data = config.model, config.data
        sources = [open_source(data, split, model.in_chans, model.num_classes)
                   for split in (data.train_split, data.eval_split)]  # fmt: skip
        self.class_names = sources[0].class_names
        self.config = config = config.resolve(len(sources[0]))
        index, count = data_share(self.mesh)
        common: dict[str, Any] = {"image_size": config.image_size, "channels": model.in_chans, "seed": config.seed}
        common |= {"process_index": index, "process_count": count}
        self.train_loader = make_loader(sources[0], data, train=True, **common)
        self.eval_loader = make_loader(sources[1], data, train=False, **common)
        if self.is_first:
            self.out.mkdir(parents=True, exist_ok=True)
        self.step_function = compile_step(config, self.mesh)
        self.eval_function = compile_eval(config, self.mesh)
        self.checkpoints = Checkpoints(self.out / "checkpoints", config.keep_checkpoints)
        self.best: dict[str, Any] = {}
        self.scores: dict[str, Any] = {}
        self.confusion: np.ndarray | None = None
        self.start, self.state = self._begin()
        self.log = RunLog(self.out if self.is_first else None, self.start, config.steps or 0, quiet)
        if self.start:
            self.log.say(f"going on from {self.checkpoints.path(self.start)}")
        self._pending: list[tuple[int, Any, np.ndarray]] = []
        self._rate = Rate(config)

    def _begin(self) -> tuple[int, Any]:
        """Returns the step to begin after, and the state there."""
        found = self.checkpoints.newest()
        if found is None:
            state = create_state(self.config, self.mesh, initial_params(self.config))
            if (teacher := teacher_params(self.config)) is not None:
                shardings = jax.tree.map(lambda x: x.sharding, abstract_state(self.config, self.mesh).teacher)
                state = state.replace(teacher=place_params(teacher, shardings))
            return 0, state
        step, run = found
        check_same_run(config_from_dict(run["config"]), self.config)
        state = self.checkpoints.restore(step, abstract_state(self.config, self.mesh))
        self.train_loader.set_state(run["data"])
        self.best, self.scores = run["best"], run["scores"]
        return step, state

    def run(self) -> Result:
        """Trains to the end, or until SIGTERM.

        Raises:
            NonFiniteLoss: the loss became NaN or infinite.
            CheckpointError: a checkpoint could not be written.
            FileError: another file could not.
        """
        try:
            return self._train()
        except OSError as error:
            with contextlib.suppress(CheckpointError):
                self.checkpoints.wait()
            said = f"{error.filename or self.out}: {error.strerror or error}; {self.checkpoints.last_good()}"
            raise FileError(said) from error

    def _train(self) -> Result:
        config, total = self.config, self.config.steps or 0
        with _terminated() as is_terminated, contextlib.closing(self.log):
            if self.start and self.start % (config.eval_every or total) == 0 and self.scores.get("step") != self.start:
                self._evaluate(self.start)  # SIGTERM came when it was due
            for step in range(self.start + 1, total + 1):
                with self._profiled(step):
                    self._take_step(step)
                due = {name: step % (every or total) == 0 or step == total
                       for name, every in (("eval", config.eval_every), ("save", config.checkpoint_every))}  # fmt: skip
                stopping = is_terminated(step)
                if step % config.log_every == 0 or any(due.values()) or stopping:
                    self._flush()
                if due["eval"] and not stopping:
                    self._evaluate(step)
                if due["save"] or stopping:
                    self._save(step)
                if stopping and step < total:
                    self.checkpoints.close()
                    self._close_loaders()
                    return Result(step, False, self.scores)
            self.checkpoints.close()
            self._finish(total)
        self._close_loaders()
        return Result(total, True, self.scores)

    def _take_step(self, step: int) -> None:
        batch = next(self.train_loader)
        placed = place_batch({name: batch[name] for name in ("image", "label")}, self.mesh)
        self.state, scalars = self.step_function(self.state, placed)
        self._pending.append((step, scalars, batch["index"]))
        if len(self._pending) > _AHEAD:
            jax.block_until_ready(self._pending[-1 - _AHEAD][1])
        if step == self.start + 1:
            jax.block_until_ready(scalars)
            self._rate.restart()  # without the time of compiling
        else:
            self._rate.count += 1

    def _flush(self) -> None:
        """Reads the scalars of the steps since the last time, and stops the run when a loss is no number."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        losses = [float(scalars["loss"]) for _, scalars, _ in pending]
        for (step, _, index), loss in zip(pending, losses, strict=True):
            if not math.isfinite(loss):
                self._stop_at(step, loss, index)
        self.checkpoints.check()
        step, scalars, _ = pending[-1]
        speed = self._rate.measure()
        values = {"loss": sum(losses) / len(losses), "learning_rate": float(scalars["learning_rate"])}
        values |= {"grad_norm": float(scalars["grad_norm"]), **speed}
        self.log.write(step, "train", values)
        self.log.progress(step, values)

    def _stop_at(self, step: int, loss: float, index: np.ndarray) -> None:
        with contextlib.suppress(RuntimeError):
            self.checkpoints.wait()
        names = self.train_loader.describe(index)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        self.log.write(step, "not_finite", {"loss": str(loss), "index": [int(i) for i in index], "images": names})
        self._close_loaders()
        raise NonFiniteLoss(
            f"the loss is {loss} at step {step}, on the images {', '.join(names[:_SHOWN])}{more} (all in {LOG}); "
            f"{self.checkpoints.last_good()}"
        )

    def _evaluate(self, step: int) -> None:
        state = self.state
        with self._rate.paused():
            self._rate.measure_peak()
            sums: Any = None
            params = state.params if state.ema is None else state.ema
            for batch in self.eval_loader:
                placed = place_batch({name: batch[name] for name in ("image", "label")}, self.mesh)
                one = self.eval_function(params, placed)
                sums = one if sums is None else jax.tree.map(lambda a, b: a + b, sums, one)
            sums = jax.tree.map(np.asarray, sums)
            count = max(1, int(sums["count"]))
            self.confusion = sums.get("confusion")
            names = {"loss": "loss", "accuracy": "correct", "accuracy5": "correct5"}
            self.scores = {name: float(sums[key]) / count for name, key in names.items()}
            self.scores |= {"count": int(sums["count"]), "step": step}
            self.log.write(step, "eval", {name: value for name, value in self.scores.items() if name != "step"})
            self.log.say(f"step {step}: top-1 {self.scores['accuracy']:.2%} of {count} images, loss "
                         f"{self.scores['loss']:.4f}")  # fmt: skip
            if self.scores["accuracy"] > self.best.get("accuracy", -1.0):
                self.best = dict(self.scores)
                self._export("best", params)

    def _export(self, name: str, params: Any) -> None:
        try:
            export(self.out / name, self.config.model, params, self.config.export_layout, self._prepared())
        except ConversionError as error:  # that the layout holds the model is known since the start
            raise FileError(f"{error}; {self.checkpoints.last_good()}") from error

    def _prepared(self) -> dict[str, Any]:
        """Returns what evaluation does to images and the classes' names, for whoever uses the weights."""
        names = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
        return {name: getattr(self.config.data, name) for name in names} | {"class_names": self.class_names}

    def _save(self, step: int) -> None:
        with self._rate.paused():
            run = {"config": self.config.to_dict(), "data": self.train_loader.get_state()}
            self.checkpoints.save(step, self.state, run | {"best": self.best, "scores": self.scores})

    def _finish(self, step: int) -> None:
        """Writes what is left of the run: weights, results, pictures."""
        if self.confusion is None and not (self.out / RESULTS).exists():
            self._evaluate(step)  # interrupted after the last checkpoint
        params = self.state.params if self.state.ema is None else self.state.ema
        self._export("final", params)
        if not self.is_first or self.confusion is None:
            return
        lines = read_log(self.out / LOG)
        speeds = [line["images_per_second"] for line in lines if line["kind"] == "train" and line["images_per_second"]]
        results = {"step": step, "scores": self.scores, "best": self.best, "bad_images": len(self.train_loader.bad)}
        results["images_per_second"] = float(np.median(speeds)) if speeds else None
        shares = np.diag(self.confusion) / np.maximum(1, self.confusion.sum(1))
        results["per_class"] = dict(zip(self.class_names, shares.tolist(), strict=False))
        try:
            draw_curves(self.out / "curves.png", lines)
            draw_confusion(self.out / "confusion.png", self.confusion, self.class_names)
        except ImportError:
            self.log.say("pictures are not drawn: pip install 'vit-linen[train]'")
        (self.out / RESULTS).write_text(json.dumps(results, indent=1) + "\n", "utf-8")

    @contextlib.contextmanager
    def _profiled(self, step: int) -> Iterator[None]:
        """Traces a few steps after the first, which compiles."""
        first = self.start + 3
        if self.profile and step == first:
            jax.profiler.start_trace(str(self.out / "profile"))
        yield
        if self.profile and step == min(first + 4, self.config.steps or 0) and step >= first:
            jax.block_until_ready(self._pending[-1][1] if self._pending else self.state.step)
            jax.profiler.stop_trace()
            self.log.say(f"wrote a trace of steps {first} to {step} to {self.out / 'profile'}")

    def _close_loaders(self) -> None:
        for loader in (self.train_loader, self.eval_loader):
            loader.close()


class Rate:
    """Images a second and the share of the devices' operations, while no evaluation or checkpoint is under way."""

    def __init__(self, config: TrainConfig) -> None:
        self.count = 0
        self._batch, self._began, self._paused = config.data.batch_size, time.perf_counter(), 0.0
        self._config, self._flops, self._peak = config, training_flops(config), 0.0
        self.measure_peak()

    def measure_peak(self) -> None:
        """Measures again what the devices can do, where nobody told: other work may have disturbed it the last time."""
        self._peak = max(self._peak, peak_flops(self._config) * jax.device_count())

    def restart(self) -> None:
        """Begins to count anew."""
        self.count, self._began, self._paused = 0, time.perf_counter(), 0.0

    def measure(self) -> dict[str, float | None]:
        """Returns images_per_second and mfu since the last time, None when no step was counted.

        Nor is a share above 1 told: the peak was measured while the machine did something else as well.
        """
        seconds = time.perf_counter() - self._began - self._paused
        images = self.count * self._batch / max(seconds, 1e-9) if self.count else None
        self.restart()
        if images is None:
            return {"images_per_second": None, "mfu": None}
        share = images * self._flops / self._peak
        return {"images_per_second": images, "mfu": share if share <= 1 else None}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent inside."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began


def check_same_run(old: TrainConfig, new: TrainConfig) -> None:
    """Raises ValueError when a checkpoint's config computes something else than this one."""
    flat_old, flat_new = _flatten(old.to_dict()), _flatten(new.to_dict())
    differing = [
        f"{name} was {flat_old.get(name)!r} and is {flat_new.get(name)!r}"
        for name in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(name) != flat_new.get(name) and name not in _FREE and name.split(".")[0] not in _FREE
    ]
    if differing:
        shown = "; ".join(differing[:_SHOWN])
        raise ValueError(f"the folder {new.out} holds another run: {shown}; take another folder")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


@contextlib.contextmanager
def _terminated() -> Iterator[Any]:
    """Gives a function that tells, after a step, whether SIGTERM has come; all processes get the same answer."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        # JAX's own handler tells the others, and all agree on a step
        yield multihost_utils.reached_preemption_sync_point
        return
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: came.is_set()
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield lambda step: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
