"""ONNX, by jax2onnx."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vit_flax.export.metadata import metadata
from vit_flax.export.program import Program

OPSET = 21
INPUT = "images"
_IR_VERSION = 10  # that of the opset's release, which older runtimes read too
_MOST = 2**31 - 2**20  # bytes of a protocol buffer; larger models have external data
_BFLOAT16, _FLOAT = 16, 1


@dataclasses.dataclass(frozen=True)
class _Spec:
    """An input in jax2onnx's form: shape, with names for dynamic axes, and dtype."""

    shape: tuple[str | int, ...]
    dtype: Any


def write(path: Path, program: Program) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Writes the program and returns the function that runs the file in ONNX Runtime.

    Raises:
        ImportError: jax2onnx, onnx or onnxruntime is not installed.
        ValueError: ONNX Runtime refuses the program.
    """
    onnx, onnxruntime, to_onnx = libraries()
    spec = _Spec(("batch", *program.image_shape), program.image_dtype)
    with _quiet():
        model: Any = to_onnx(
            program.function(), [spec], model_name="vit_flax", opset=OPSET, input_names=[INPUT],
            output_names=list(program.names),
        )  # fmt: skip
    if program.dtype == "bfloat16":
        _round_to_bfloat16(onnx, model.graph)
    model.ir_version = min(model.ir_version, _IR_VERSION)
    model.producer_name = "vit_flax"
    onnx.helper.set_model_props(model, metadata(program))
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _MOST:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save_model(model, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common public class
        raise ValueError(f"ONNX Runtime refuses the program: {' '.join(str(error).split())[:300]}") from error
    return lambda images: session.run(list(program.names), {INPUT: images})


def libraries() -> tuple[ModuleType, ModuleType, Callable[..., object]]:
    """Returns the modules onnx and onnxruntime and the function jax2onnx.to_onnx.

    Raises:
        ImportError: one of them is not installed; the message says how to install it.
    """
    try:
        import onnx
        import onnxruntime

        with _quiet():
            from jax2onnx import to_onnx
    except ImportError as error:
        raise ImportError(f"ONNX needs {error.name or 'jax2onnx'}: pip install 'vit-linen[export]'") from error
    return onnx, onnxruntime, to_onnx


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences jax2onnx's log of its examples' missing dependencies and of its passes."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _round_to_bfloat16(onnx: Any, graph: Any) -> None:
    """Keeps parameters and casts in bfloat16 and computes in float32: no CPU runtime has bfloat16 matrix products.

    Products of bfloat16 numbers are exact in float32, so they equal XLA's; other results that XLA rounds to bfloat16
    stay unrounded.
    """
    renamed, nodes = {}, []

    def widen(name: str, wide: str) -> None:
        nodes.append(onnx.helper.make_node("Cast", [name], [wide], to=_FLOAT))

    for tensor in graph.initializer:
        if tensor.data_type == _BFLOAT16:
            renamed[tensor.name] = f"{tensor.name}_wide"
            widen(tensor.name, renamed[tensor.name])
    for node in graph.node:
        copy = type(node).FromString(node.SerializeToString())
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(copy)
        told = {attribute.name: attribute for attribute in node.attribute}
        to_narrow = node.op_type == "Cast" and told["to"].i == _BFLOAT16
        if to_narrow or (node.op_type == "Constant" and "value" in told and told["value"].t.data_type == _BFLOAT16):
            copy.output[0] = f"{node.output[0]}_narrow"
            widen(copy.output[0], node.output[0])
    del graph.node[:]
    graph.node.extend(nodes)
    for output in graph.output:  # jax2onnx takes a product of bfloat16 numbers to be of bfloat16
        output.type.tensor_type.elem_type = _FLOAT
    del graph.value_info[:]  # stale types; runtimes infer them
