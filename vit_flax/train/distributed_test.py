"""Two processes of two devices train as one device; when one is killed the job ends, says so, and goes on later."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vit_flax.parity.tolerances import FLOAT32_EPS, OTHER_MACHINE
from vit_flax.train.distributed import start

BATCH = 16


def _command(out: Path, steps: int, *more: str) -> list[str]:
    changes = [f"steps={steps}", f"data.batch_size={BATCH}", "log_every=1", "checkpoint_every=5", "eval_every=100000",
               "model.embed_dim=16", "model.depth=1", "model.num_heads=2", "peak_flops=1e12"]  # fmt: skip
    sets = [argument for change in changes for argument in ("--set", change)]
    return [sys.executable, "-m", "vit_flax.cli.main", "train", "digits", "--quiet", "--out", str(out), *sets, *more]


def _start(command: list[str], devices: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }  # fmt: skip
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def _pair(out: Path, steps: int, *more: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        _start(_command(out, steps, "--coordinator", address, "--processes", "2", "--process", str(i), *more), 2)
        for i in (0, 1)
    ]


def _rows(out: Path) -> list[dict[str, float]]:
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row for row in rows if row.get("kind") == "train"]


def _column(out: Path, name: str) -> np.ndarray:
    return np.array([row[name] for row in _rows(out)])


def _end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors[-2000:]


@pytest.mark.slow
def test_processes_and_devices_change_nothing_but_rounding(tmp_path: Path) -> None:
    steps, more = 12, ("--set", "schedule.warmup_epochs=0")
    runs = {"one": [_start(_command(tmp_path / "one", steps, *more), 1)]}
    runs["parts"] = [_start(_command(tmp_path / "parts", steps, *more, "--set", "accumulation=4"), 1)]
    runs["four"] = [_start(_command(tmp_path / "four", steps, *more), 4)]
    runs["two"] = _pair(tmp_path / "two", steps, *more)
    for processes in runs.values():
        _end(processes)
    for name in ("loss", "grad_norm"):
        expected = _column(tmp_path / "one", name)
        assert len(expected) == steps
        # One device that takes the batch in four parts adds the same numbers in another order, as four devices do:
        # its distance is what rounding makes of one step, and of all steps after it. Never less than a sum of BATCH.
        rounding = np.abs(_column(tmp_path / "parts", name) / expected - 1)
        assert rounding.max() < OTHER_MACHINE / 2, "taking the batch in parts is no rounding"
        allowed = 4 * np.maximum.accumulate(np.maximum(rounding, BATCH * FLOAT32_EPS / 2))
        for run in ("four", "two"):
            assert (np.abs(_column(tmp_path / run, name) / expected - 1) <= allowed).all(), (run, name)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_job_which_then_goes_on(tmp_path: Path, victim: int) -> None:
    out, steps = tmp_path / "run", 120
    processes = _pair(out, steps)
    until = time.monotonic() + 300
    while not ((out / "log.jsonl").exists() and len(_rows(out)) > 10):
        assert time.monotonic() < until
        assert all(process.poll() is None for process in processes), "a process ended by itself"
        time.sleep(0.2)
    processes[victim].send_signal(signal.SIGKILL)
    _, errors = processes[1 - victim].communicate(timeout=60)
    processes[victim].communicate()
    assert processes[1 - victim].returncode == 1
    said = [line for line in errors.splitlines() if line.startswith("vit-flax train:")]
    assert len(said) == 1, errors
    assert "another process of the job is gone" in said[0]
    assert "Traceback" not in errors
    last = max(int(path.name) for path in (out / "checkpoints").iterdir() if (path / "manifest.json").exists())
    after = {}
    for name, devices in {"two processes": 0, "1 device": 1, "2 devices": 2, "4 devices": 4}.items():
        again = tmp_path / name
        shutil.copytree(out, again)
        _end([_start(_command(again, steps), devices)] if devices else _pair(again, steps))
        assert [row["step"] for row in _rows(again)] == list(range(1, steps + 1))  # each once
        after[name] = _column(again, "loss")[last : last + 3]
    for losses in after.values():
        np.testing.assert_allclose(losses, after["1 device"], rtol=4 * BATCH * FLOAT32_EPS / 2)


def test_half_an_address_is_refused() -> None:
    with pytest.raises(ValueError, match="together"):
        start("127.0.0.1:1", None, 0)
