"""timm's model exported to ONNX and run by ONNX Runtime. Float32 inference only."""

from __future__ import annotations

import importlib
import time

import numpy as np

from benchmarks.peers import Job, Prepared
from benchmarks.peers.torch_timm import build

SETTINGS = "ONNX export (opset 18), CPUExecutionProvider, all graph optimisations"


def prepare(job: Job) -> Prepared:
    """Exports the model and opens a session."""
    import torch

    onnxruntime = importlib.import_module("onnxruntime")  # by name: type checkers may not have it
    images = np.ascontiguousarray(job.images.transpose(0, 3, 1, 2))
    started = time.perf_counter()
    path = job.weights.with_suffix(f".b{len(images)}.onnx")
    if not path.exists():
        torch.onnx.export(build(job).eval(), (torch.tensor(images),), str(path), opset_version=18, dynamo=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images}

    def run() -> np.ndarray:
        return np.asarray(session.run(None, feed)[0])

    return Prepared(run, run(), time.perf_counter() - started, {})
