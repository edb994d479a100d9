"""Stored results of training: the losses of three recipes' first 20 steps, and three lowered training steps.

Command: python -m parity_tests.golden writes parity_tests/stored/golden.json anew, after a change that is meant; with
`--losses` it prints the machine and the losses.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # compiled as users do but for LLVM's optimiser, which would take most of the time
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}

import jax

from vit_flax.cli.main import main
from vit_flax.presets import get_preset
from vit_flax.train.batch import batch_shapes
from vit_flax.train.compilation import abstract_state, compile_step
from vit_flax.train.config import DataConfig, TrainConfig
from vit_flax.train.sharding import make_mesh

FILE = Path(__file__).parent / "stored" / "golden.json"
STEPS = 20
_SMALL = ("model.depth=2", "model.embed_dim=24", "model.num_heads=2")
_DIGITS = ("data.name=digits", "data.path=null", "data.mean=0.3", "data.std=0.4", "data.batch_size=32",
           "data.workers=0", "model.in_chans=1", "model.num_classes=10", "model.image_size=8")  # fmt: skip
# each recipe as it is but for its data and size
RECIPES: dict[str, tuple[str, ...]] = {
    "digits": _SMALL,
    "deit_s16": (*_SMALL, *_DIGITS, "model.patch_size=2", "schedule.warmup_epochs=0"),
    "fashion_mnist_t2t": (*_SMALL, *_DIGITS, "schedule.warmup_epochs=0"),
}
PRESETS = ("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224")


def losses(recipe: str) -> list[float]:
    """Returns the loss of every one of a recipe's first steps, as `vit-flax train` writes them to log.jsonl."""
    sets = (*RECIPES[recipe], f"steps={STEPS}", "log_every=1", "peak_flops=1e12")
    told = [part for value in sets for part in ("--set", value)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        status = main(["train", recipe, *told, "--out", folder, "--quiet"])
        assert status == 0, f"vit-flax train {recipe}: status {status}"
        lines = map(json.loads, (Path(folder) / "log.jsonl").read_text("utf-8").splitlines())
        found = [line["loss"] for line in lines if line.get("kind") == "train"]
    assert len(found) == STEPS
    return found


def lowered(preset: str) -> str:
    """Returns a digest of the lowered training step (StableHLO) of a preset cut to two blocks."""
    model = get_preset(preset).config.replace(depth=2, num_classes=10)
    config = TrainConfig(model=model, data=DataConfig(name="digits", batch_size=8), epochs=1).resolve(64)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    text = compile_step(config, mesh).lower(abstract_state(config, mesh), batch_shapes(config)).as_text()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def machine() -> dict[str, Any]:
    """Returns the CPU, its cores, JAX's version and XLA's flags, on which the last bits of losses depend."""
    cpu: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            cpu.setdefault(key.strip(), value.strip())
    kind = " ".join(cpu.get(name, "") for name in ("vendor_id", "cpu family", "model")).strip() or platform.machine()
    flags = os.environ.get("XLA_FLAGS", "").strip()
    # those that the process may use, where the system tells
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": kind, "cores": cores, "jax": jax.__version__, "flags": flags}


if __name__ == "__main__":
    found: dict[str, Any] = {"machine": machine(), "losses": {name: losses(name) for name in RECIPES}}
    if sys.argv[1:] == ["--losses"]:
        print(json.dumps(found))
    else:
        stored = {**found, "steps": {name: lowered(name) for name in PRESETS}}
        FILE.write_text(json.dumps(stored, indent=1) + "\n")
        print(f"wrote {FILE}")
