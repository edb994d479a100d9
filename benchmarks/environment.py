"""The environment of a measurement: device, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "numpy", "torch", "timm", "transformers", "onnxruntime", "openvino", "Equimo",
    "libtpu", "jax-cuda12-plugin",
)  # fmt: skip
# MKL chooses its slower AVX2 kernels on AMD processors; this answer makes it use AVX-512
MKL_SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def describe() -> dict[str, Any]:
    """Returns device, versions and commit as JSON types."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": device(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _git("describe", "--always", "--dirty"),
        "date": _git("log", "-1", "--format=%cI"),
    }


def device() -> str:
    """Returns the accelerator's name, or the processor's with its cores."""
    try:
        names = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True
        ).stdout.split("\n")
        return names[0].strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    model = "CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
