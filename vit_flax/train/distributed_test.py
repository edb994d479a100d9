"""Two processes of two devices train as one device; when one is killed the job ends, says so, and goes on later."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vit_flax.train.distributed import start

BATCH = 16
U32 = 2.0**-24


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


def _pair(out: Path, steps: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        _start(_command(out, steps, "--coordinator", address, "--processes", "2", "--process", str(i)), 2)
        for i in (0, 1)
    ]


def _losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row.get("kind") == "train"]


@pytest.mark.slow
def test_processes_and_devices_change_nothing_but_rounding(tmp_path: Path) -> None:
    runs = {"one": [_start(_command(tmp_path / "one", 4), 1)], "four": [_start(_command(tmp_path / "four", 4), 4)]}
    runs["two"] = _pair(tmp_path / "two", 4)
    for processes in runs.values():
        for process in processes:
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors[-2000:]
    expected = _losses(tmp_path / "one")
    assert len(expected) == 4
    for name in ("four", "two"):
        found = _losses(tmp_path / name)
        # the first is a mean of BATCH losses in another order; the next follow from gradients summed in another order,
        # whose relative error AdamW's division hands on to parameters as large as learning rate times its square root
        np.testing.assert_allclose(found[0], expected[0], rtol=BATCH * U32)
        np.testing.assert_allclose(found, expected, rtol=100 * BATCH * U32)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_job_which_then_goes_on(tmp_path: Path, victim: int) -> None:
    out, steps = tmp_path / "run", 400
    processes = _pair(out, steps)
    until = time.monotonic() + 300
    while not ((out / "log.jsonl").exists() and len(_losses(out)) > 10):
        assert time.monotonic() < until
        assert all(process.poll() is None for process in processes), "a process ended by itself"
        time.sleep(0.2)
    processes[victim].send_signal(signal.SIGKILL)
    _, errors = processes[1 - victim].communicate(timeout=60)
    processes[victim].communicate()
    assert processes[1 - victim].returncode not in (0, None)
    assert "another process of the job is gone" in errors or "JAX distributed service detected fatal errors" in errors
    again = _start(_command(out, steps), 4 if victim else 1)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors[-2000:]
    assert len(_losses(out)) >= steps - 5


def test_half_an_address_is_refused() -> None:
    with pytest.raises(ValueError, match="together"):
        start("127.0.0.1:1", None, 0)
