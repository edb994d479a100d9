"""Runs that are killed, stopped, and started again; and checkpoints that are damaged or cannot be written."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from vit_flax.cli.main import main

STEPS = 40
_CACHE = tempfile.TemporaryDirectory()
# drop paths, mixing and augmentation are random; a checkpoint every few steps is nearly always under way
SETTINGS = (
    "model.embed_dim=16", "model.depth=2", "model.num_heads=2", "drop.drop_path_rate=0.2", "mixing.mixup_alpha=0.5",
    "mixing.cutmix_alpha=1.0", "mixing.erasing_prob=0.3", "ema.decay=0.9", "data.batch_size=32", f"steps={STEPS}",
    "checkpoint_every=3", "eval_every=20", "log_every=1", "data.threads=1", "peak_flops=1e12",
)  # fmt: skip


def _arguments(out: Path) -> list[str]:
    return ["train", "digits", *(part for setting in SETTINGS for part in ("--set", setting)), "--out", str(out)]


def _command(out: Path) -> list[str]:
    return [sys.executable, "-m", "vit_flax.cli.main", *_arguments(out)]


def _environment() -> dict[str, str]:
    # every process compiles the same: the second takes it from the first
    cache = {"JAX_COMPILATION_CACHE_DIR": _CACHE.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {**os.environ, **cache, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(autouse=True, scope="module")
def _one_compiler(xla_flags: str) -> Iterator[None]:
    """Other processes compile as this one, whose results theirs are compared with bit for bit."""
    with mock.patch.dict(os.environ, XLA_FLAGS=xla_flags):
        yield


def _finish(out: Path) -> None:
    """Runs to the end in this process, in 32-bit mode as a process of its own does."""
    jax.config.update("jax_enable_x64", False)
    try:
        assert main(_arguments(out)) == 0
    finally:
        jax.config.update("jax_enable_x64", True)


def _weights(out: Path) -> dict[str, np.ndarray]:
    return load_file(out / "final" / "model.safetensors")


def _assert_same(out: Path, reference: Path) -> None:
    ours, theirs = _weights(out), _weights(reference)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    expected = [json.loads(line) for line in (reference / "log.jsonl").read_text().splitlines()]
    assert losses == {line["step"]: line["loss"] for line in expected if line["kind"] == "train"}
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))  # every step once


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    _finish(out)
    return out


def _kill_when(out: Path, is_time: Callable[[Path], bool], sign: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
    """Starts the run, kills it when `is_time` says so, and returns its exit status and what it told."""
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(_command(out), stderr=told, env=_environment())
        while process.poll() is None and not is_time(out):
            time.sleep(0.001)
        process.send_signal(sign)
        status = process.wait()
        told.seek(0)
        return status, told.read()


def _begun(out: Path) -> list[int]:
    folder = out / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def _inside_a_write(out: Path) -> bool:
    """Whether a checkpoint after the second has begun and has no manifest yet."""
    return any(
        step >= 9 and not (out / "checkpoints" / f"{step:08d}" / "manifest.json").exists() for step in _begun(out)
    )


def test_killed_inside_a_write_then_at_a_step_then_stopped(undisturbed: Path, tmp_path: Path) -> None:
    _kill_when(tmp_path, _inside_a_write)
    first = _begun(tmp_path)[-1]
    _kill_when(tmp_path, lambda out: _begun(out)[-1] >= first + 7)
    second = _begun(tmp_path)[-1]
    status, said = _kill_when(tmp_path, lambda out: _begun(out)[-1] >= second + 4, signal.SIGTERM)
    assert status == 75, said
    assert "run it again to go on" in said
    assert not (tmp_path / "results.json").exists()
    _finish(tmp_path)
    _assert_same(tmp_path, undisturbed)


def test_damaged_checkpoints_and_a_full_disk(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    flipped, truncated, last = (out / "checkpoints" / f"{step:08d}" for step in (STEPS, 39, 36))
    before = {path: path.read_bytes() for path in last.rglob("*") if path.is_file()}
    data = bytearray(_largest(flipped).read_bytes())
    data[len(data) // 2] ^= 1
    _largest(flipped).write_bytes(data)
    os.truncate(_largest(truncated), _largest(truncated).stat().st_size - 1)
    names = [_largest(folder).name for folder in (flipped, truncated)]
    limit = _largest(last).stat().st_size // 2

    command = ["prlimit", f"--fsize={limit}", *_command(out)]  # no file can grow beyond it
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    said = done.stderr
    assert done.returncode == 1, said
    assert "Traceback" not in said
    for folder, name in zip((flipped, truncated), names, strict=True):
        assert any(f"{folder} is damaged" in line and name in line for line in said.splitlines()), said
    assert f"going on from {last}" in said
    told = said.splitlines()[-1]
    assert "step 39 could not be written" in told
    assert "File too large" in told
    assert said.count("vit-flax train:") == 1
    assert f"the last good checkpoint is {last}" in said
    assert before == {path: path.read_bytes() for path in last.rglob("*") if path.is_file()}
    _finish(out)
    _assert_same(out, undisturbed)


def _largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.slow
def test_killed_twenty_times(undisturbed: Path, tmp_path: Path) -> None:
    rng, kills, inside = random.Random(0), 0, 0
    while kills < 20:
        began = time.monotonic()
        # half of them inside a write, the others at any moment from the start of the process on
        patience = rng.uniform(0, 12)
        is_inside = rng.random() < 0.5
        status, _ = _kill_when(
            tmp_path,
            lambda out, began=began, patience=patience, is_inside=is_inside: (
                time.monotonic() - began > patience and (not is_inside or _inside_a_write(out))
            ),
        )
        if status == 0:  # finished meanwhile: from the first checkpoint again
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            continue
        kills += 1
        inside += is_inside
    assert inside >= 5
    _finish(tmp_path)
    _assert_same(tmp_path, undisturbed)
