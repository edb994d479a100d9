"""FLOPs of the products in a compiled program: dots, convolutions, library calls and known kernels."""

from __future__ import annotations

import json
import math
import re
from collections import Counter

from vit_flax.plan.hlo import Computation, Operation, Program

# FLOPs by dtype and precision of the operands, which determine the rate
Flops = Counter[str]  # 'bf16', 'f32:default', 'f32:high', 'f32:highest', 'f64'


def count(program: Program, computation: Computation, operation: Operation) -> Flops:
    """Returns the FLOPs (two a multiply-add) of an operation's products, by kind."""
    if operation.opcode in ("dot", "convolution"):
        return Flops({_kind(computation, operation): FLOPS[operation.opcode](computation, operation)})
    if operation.opcode == "custom-call":
        return _library(computation, operation)
    total: Flops = Flops()
    called = program.computations.get(operation.attribute("calls"), {})
    for inner in called.values():
        total += count(program, called, inner)
    return total


def uncounted(operation: Operation) -> str:
    """Returns the name of a kernel whose FLOPs cannot be derived from the text; '' for every other operation."""
    target = _target(operation)
    if operation.opcode != "custom-call" or target in _MOVE or target.startswith(("__cublas", "__cudnn$conv")):
        return ""
    return "" if _estimate(operation) or _attention(operation) else target


_MOVE = ("ConcatBitcast", "AllocateBuffer", "Sharding", "TopK", "AssumeGatherIndicesInBound", "SliceToDynamic",
         "PadToStatic", "DynamicGather", "X64Combine", "X64SplitLow", "X64SplitHigh", "annotate_device_placement",
         "xla.gpu.ext.stream_annotation", "__cub$DeviceRadixSort", "MoveToHost", "MoveToDevice")  # fmt: skip


def _target(operation: Operation) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', operation.attributes)
    return found[1] if found else ""


def _kind(computation: Computation, operation: Operation) -> str:
    dtypes = {array.dtype for name in operation.operands[:2] for array in _arrays(computation, name)[:1]}
    if "f64" in dtypes:
        return "f64"
    if "f32" not in dtypes:
        return "bf16"
    found = re.search(r"operand_precision=\{(\w+)", operation.attributes)
    precision = found[1] if found else "default"
    return f"f32:{precision if precision in ('high', 'highest') else 'default'}"


def _arrays(computation: Computation, name: str) -> tuple:
    return computation[name].arrays if name in computation else ()


def _shape(computation: Computation, name: str) -> tuple[int, ...]:
    found = _arrays(computation, name)
    return found[0].shape if found else ()


def _dot(computation: Computation, operation: Operation) -> int:
    left = _shape(computation, operation.operands[0])
    contracted = math.prod(left[axis] for axis in operation.numbers("lhs_contracting_dims"))
    return 2 * math.prod(operation.arrays[0].shape) * contracted


def _convolution(computation: Computation, operation: Operation) -> int:
    """Counts the FLOPs of a convolution without multiplications by padding and by dilation's zeros.

    Batched products of TPUs are dilated convolutions. Each spatial axis counts the pairs of output and kernel positions
    that meet an element of the input.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.attributes)
    if labels is None:
        return 0
    left, kernel = (_shape(computation, name) for name in operation.operands[:2])
    result = operation.arrays[0].shape
    inputs, outputs = kernel[labels[2].index("i")], result[labels[3].index("f")]
    total = 2 * inputs * outputs * result[labels[3].index("b")]
    window = re.search(r"window=\{([^}]*)\}", operation.attributes)
    for axis in sorted(set(labels[3]) - {"b", "f"}):
        values = {name: _window(window[1] if window else "", name, int(axis)) for name in _WINDOW}
        total *= _meeting(left[labels[1].index(axis)], result[labels[3].index(axis)], values)
    return total


_WINDOW = {"size": 1, "stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}


def _window(text: str, name: str, axis: int) -> int:
    found = re.search(rf"\b{name}=([\dx_\-]+)", text)
    return int(found[1].split("x")[axis].split("_")[0]) if found else _WINDOW[name]


def _meeting(length: int, results: int, window: dict[str, int]) -> int:
    spread, last = window["lhs_dilate"], (length - 1) * window["lhs_dilate"]
    total = 0
    for offset in range(window["size"]):
        start = offset * window["rhs_dilate"] - window["pad"]
        places = range(start, start + results * window["stride"], window["stride"])
        if spread == 1 and window["stride"] == 1:
            total += max(0, min(last, places[-1]) - max(0, places[0]) + 1)
        else:
            total += sum(0 <= place <= last and place % spread == 0 for place in places)
    return total


def _library(computation: Computation, operation: Operation) -> Flops:
    target = _target(operation)
    if target.startswith("__cublas"):
        found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', operation.attributes)
        axes = [int(n) for n in re.findall(r"\d+", found[1])] if found else []
        left = _shape(computation, operation.operands[0])
        contracted = math.prod(left[axis] for axis in axes)
        return Flops({_kind(computation, operation): 2 * math.prod(operation.arrays[0].shape) * contracted})
    if target.startswith("__cudnn$conv"):
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.attributes)
        shapes = [_shape(computation, name) for name in operation.operands[:2]] + [operation.arrays[0].shape]
        if labels is None:
            return Flops()
        # forward: input, kernel -> output; input's gradient: output, kernel -> input; kernel's: input, output -> kernel
        kernel, output = 1, 2
        if "BackwardInput" in target:
            output = 0
        elif "BackwardFilter" in target:
            kernel, output = 2, 1
        window = math.prod(shapes[kernel][i] for i, name in enumerate(labels[2]) if name != "o")
        return Flops({_kind(computation, operation): 2 * math.prod(shapes[output]) * window})
    total = _estimate(operation) or _attention_flops(computation, operation)
    return Flops({_kind(computation, operation): total}) if total else Flops()


def _estimate(operation: Operation) -> int:
    """Returns the FLOPs of a Pallas kernel's own cost estimate."""
    found = re.search(r'"cost_estimate":\s*(\{[^}]*\})', operation.attributes)
    return int(float(json.loads(found[1]).get("flops", 0))) if found else 0


def _attention(operation: Operation) -> int:
    """Returns the number of (N, N) products of an attention kernel by its name: two forward, five backward; 0: none.

    Backward kernels recompute the logits; splash's kernel of dk and dv counts as the fused one, which computes dq too.
    """
    name = f"{operation.op_name} {_target(operation)}".lower()
    if "splash_mha" in name or "flash_attention" in name:
        parts = ("dq", 3), ("dkv", 5), ("bwd", 5), ("fwd", 2)
        return next((number for part, number in parts if re.search(rf"(_|\b){part}", name)), 0)
    if "fmha" in name:
        return 5 if "backward" in name else 2
    return 0


def _attention_flops(computation: Computation, operation: Operation) -> int:
    """Counts from queries and keys (..., N, E), the first floating-point operands; masks and lengths are integers."""
    number = _attention(operation)
    arrays = [array for name in operation.operands for array in _arrays(computation, name)[:1]]
    wide = [array.shape for array in arrays if len(array.shape) >= 3 and array.dtype in ("bf16", "f16", "f32")]
    if not number or len(wide) < 2:
        return 0
    queries, keys = wide[0], wide[1]
    if "fmha" in _target(operation):  # cuDNN's heads lie (B, N, H, E)
        return 2 * number * math.prod(queries) * keys[1]
    return 2 * number * math.prod(queries) * keys[-2]


FLOPS = {"dot": _dot, "convolution": _convolution}
