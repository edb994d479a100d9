"""Times contestants in interleaved rounds, each in its own process, after a check that their outputs agree."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.environment import MKL_SOURCE, describe
from benchmarks.peers import missing

# ||outputs - ours|| / ||ours||: above the peers' own roundings, far below the difference of another model
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Contestant:
    """A file of benchmarks.peers, one of its variants, and the environment of its process."""

    name: str
    file: str
    variant: str = ""
    mkl: bool = False  # let MKL use AVX-512 on AMD processors
    keep_memory: bool = False  # call vit_flax.host_memory.keep_host_memory() first
    root: Path = Path(__file__).parent.parent  # folder of the code, or of another commit's: see benchmarks.checkout

    def environment(self, folder: Path) -> dict[str, str]:
        """Returns the environment variables of its process."""
        extra = {"LD_PRELOAD": str(_mkl_override(folder))} if self.mkl else {}
        path = os.pathsep.join(filter(None, [str(self.root), os.environ.get("PYTHONPATH")]))
        extra |= {"OMP_NUM_THREADS": str(_cores()), "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
        return {**os.environ, **extra}


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _mkl_override(folder: Path) -> Path:
    library = folder / "mkl_override.so"
    if not library.exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise RuntimeError("the '+mkl' contestants need a C compiler: install gcc, or leave them out with --only")
        source = folder / "mkl_override.c"
        source.write_text(MKL_SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


class Process:
    """A contestant's process."""

    def __init__(self, contestant: Contestant, case: Case, folder: Path) -> None:
        self.contestant = contestant
        self.outputs = folder / f"{contestant.name}.npy"
        order = {
            "file": contestant.file, "variant": contestant.variant, "keep_memory": contestant.keep_memory,
            "case": dataclasses.asdict(case),
            "weights": str(folder / "weights.safetensors"), "inputs": str(folder / "inputs.npz"),
            "outputs": str(self.outputs),
        }  # fmt: skip
        with (folder / f"{contestant.name}.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", json.dumps(order)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, env=contestant.environment(folder), cwd=contestant.root,
            )  # fmt: skip
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended without an answer"}

    def run(self, calls: int) -> dict[str, Any]:
        """Returns the seconds of each of `calls` calls and the peak memory so far."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the process is gone, killed for memory: there is no answer then
            self.process.stdin.write(f"{calls}\n")
            self.process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise SystemExit(
                f"{self.contestant.name} ended with status {self.process.wait(60)} while it was timed "
                "(-9: not enough memory for all at once; name fewer with --only)"
            )
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def make_inputs(case: Case, folder: Path) -> None:
    """Writes weights in timm's layout, images and labels; the same for the same case."""
    import jax
    import jax.numpy as jnp

    import vit_flax
    from vit_flax.models import build_model

    model = build_model(case.config)
    params = model.init(jax.random.key(0), jnp.zeros((1, *case.config.image_size, case.config.in_chans)))["params"]
    vit_flax.save(folder / "weights.safetensors", model, params, "timm")
    rng = np.random.default_rng(0)
    images = rng.standard_normal((case.batch, *case.config.image_size, case.config.in_chans), np.float32)
    labels = rng.integers(0, case.config.num_classes, case.batch, np.int32)
    np.savez(folder / "inputs.npz", images=images, labels=labels)


def race(case: Case, contestants: list[Contestant], rounds: int, seconds: float) -> dict[str, Any]:
    """Returns the timings of every contestant on one case.

    Args:
        case: the model, batch, precision and mode.
        contestants: contestants to time; the first is the one that others are compared with.
        rounds: number of interleaved rounds.
        seconds: approximate time of each contestant in a round; at least one call.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(case, folder)
        rows: dict[str, dict[str, Any]] = {}
        running: list[Process] = []
        try:
            for contestant in contestants:
                absent = missing(contestant.file)
                if absent:
                    rows[contestant.name] = {"error": f"not installed: {', '.join(absent)}"}
                    continue
                _progress(f"{case.name}: {contestant.name} prepares")
                process = Process(contestant, case, folder)
                rows[contestant.name] = process.ready
                if "error" not in process.ready:
                    running.append(process)
            for process in running:
                _check(case, running[0], process, rows)
            calls = {}
            for process in running:
                warm = process.run(2)["seconds"]
                calls[process] = max(1, round(seconds / min(warm)))
            samples: dict[str, list[float]] = {process.contestant.name: [] for process in running}
            for index in range(rounds):
                _progress(f"{case.name}: round {index + 1} of {rounds}")
                for process in running:
                    answer = process.run(calls[process])
                    samples[process.contestant.name].append(statistics.median(answer["seconds"]))
                    rows[process.contestant.name]["peak_bytes"] = answer["peak_bytes"]
        finally:
            for process in running:
                process.close()
            _progress("")
    first = samples[running[0].contestant.name]
    for contestant, times in samples.items():
        row = rows[contestant]
        row["round_seconds"] = times
        row["seconds"] = statistics.median(times)
        row["spread"] = (max(times) - min(times)) / row["seconds"]
        row["images_per_second"] = case.batch / row["seconds"]
        row["flops_per_second"] = row.pop("flops") / row["seconds"]
        # how many times faster the first contestant is, round by round
        ratios = [theirs / ours for theirs, ours in zip(times, first, strict=True)]
        row["ratio"], row["ratio_low"], row["ratio_high"] = statistics.median(ratios), min(ratios), max(ratios)
    return {"case": dataclasses.asdict(case), "name": case.name, "rounds": rounds, "rows": rows, **describe()}


def _check(case: Case, ours: Process, other: Process, rows: dict[str, Any]) -> None:
    expected, got = np.load(ours.outputs), np.load(other.outputs)
    if not got.size or not expected.size:
        return  # a matrix product has nothing to agree with
    difference = float(np.linalg.norm(got.reshape(expected.shape) - expected) / np.linalg.norm(expected))
    rows[other.contestant.name]["difference"] = difference
    if not difference <= TOLERANCE[case.precision]:
        raise SystemExit(
            f"{case.name}: {other.contestant.name} computes something else: relative difference {difference:.1e}, "
            f"at most {TOLERANCE[case.precision]:.0e} expected"
        )


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
