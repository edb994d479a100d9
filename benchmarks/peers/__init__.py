"""The contestants: one file each, with `SETTINGS` and `prepare(job)`, and the packages that it needs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case


@dataclass(frozen=True)
class Job:
    """A contestant's job: a case, with weights in timm's layout and a batch of NHWC images."""

    case: Case
    weights: Path  # .safetensors
    images: np.ndarray  # (batch, height, width, channels), float32
    labels: np.ndarray  # (batch,), int32
    variant: str = ""  # a way of running that the contestant itself offers


@dataclass(frozen=True)
class Prepared:
    """A contestant that is compiled and ready."""

    run: Callable[[], Any]  # one call, finished when it returns
    outputs: np.ndarray  # inference: the logits; training: the losses of the first three steps
    compile_seconds: float
    notes: dict[str, Any]


# file -> the packages it needs
NEEDS: dict[str, tuple[str, ...]] = {
    "vit_flax": (),
    "formulations": (),
    "linen": (),
    "equimo": ("equimo", "equinox"),
    "torch_timm": ("torch", "timm"),
    "transformers_vit": ("torch", "transformers"),
    "onnxruntime": ("torch", "timm", "onnx", "onnxruntime"),
    "openvino": ("torch", "timm", "openvino"),
    "matmul": (),
    "memory": (),
}


def missing(file: str) -> list[str]:
    """Returns the packages that a contestant needs and that are not installed."""
    return [name for name in NEEDS[file] if importlib.util.find_spec(name) is None]


def get_peer(file: str) -> Any:
    """Returns the module of a contestant."""
    return importlib.import_module(f"benchmarks.peers.{file}")
