"""timm's model converted to OpenVINO. Inference only; bfloat16 is OpenVINO's own choice of where."""

from __future__ import annotations

import importlib
import time

import numpy as np

from benchmarks.peers import Job, Prepared
from benchmarks.peers.torch_timm import build

SETTINGS = "ov.convert_model, CPU plugin, LATENCY hint, fixed shapes, INFERENCE_PRECISION_HINT as the case"


def prepare(job: Job) -> Prepared:
    """Converts and compiles the model."""
    import torch

    ov = importlib.import_module("openvino")  # by name: type checkers may not have it
    images = np.ascontiguousarray(job.images.transpose(0, 3, 1, 2))
    started = time.perf_counter()
    converted = ov.convert_model(build(job).eval(), example_input=torch.tensor(images))
    converted.reshape(list(images.shape))
    precision = "bf16" if job.case.precision == "bfloat16" else "f32"
    compiled = ov.Core().compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    )

    def run() -> np.ndarray:
        return compiled(images)[0]

    return Prepared(run, np.array(run()), time.perf_counter() - started, {})
