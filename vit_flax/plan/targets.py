"""Devices to compile for on a machine that has none: TPUs by libtpu, GPUs by the compiler in JAX's CUDA plugin."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

from vit_flax import gpu_compiler
from vit_flax.chips import Topology, parse_topology
from vit_flax.microbatches import Device

# Products as cuBLAS calls: with a device XLA autotunes its Triton kernels against them, without one it takes Triton's
# untimed, and for some shapes finds no tiling and fails.
GPU_OPTIONS: dict[str, Any] = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
GPU_LIMITS: tuple[str, ...] = (
    "compiled without a GPU: nothing is timed, so products are cuBLAS calls where XLA might choose Triton's kernels",
    "reuse in the L2 cache between kernels is not modelled: all operands and results count as memory traffic",
    "NCCL's and cuDNN's own memory is not counted",
    "JAX takes 75 % of the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says more",
)

CUDNN = (9, 8)  # cuDNN's version that programs are compiled for
# Description of a GPU for the compiler (XLA's GpuTargetConfigProto). Common to all: limits of compute capability 8.0
# and later. Reference: CUDA C++ Programming Guide, 'Technical Specifications per Compute Capability'.
_COMMON = """threads_per_block_limit: 1024
threads_per_warp: 32
shared_memory_per_block: 49152
threads_per_core_limit: 2048
block_dim_limit_x: 2147483647
block_dim_limit_y: 65535
block_dim_limit_z: 65535
registers_per_core_limit: 65536
registers_per_block_limit: 65536"""
# Reference: NVIDIA's architecture white papers (Ampere GA100, Hopper GH100, Blackwell), data sheets of the SXM modules.
_AMPERE = {"capability": (8, 0), "fpus_per_core": 64, "shared_memory_per_core": 164 << 10,
           "shared_memory_per_block_optin": 163 << 10}  # fmt: skip
_HOPPER = {"capability": (9, 0), "fpus_per_core": 128, "shared_memory_per_core": 228 << 10,
           "shared_memory_per_block_optin": 227 << 10}  # fmt: skip
_GPUS: dict[str, dict[str, Any]] = {
    "a100": {**_AMPERE, "name": "NVIDIA A100-SXM4-80GB", "core_count": 108, "clock_rate_ghz": 1.41,
             "l2_cache_size": 40 << 20, "memory_bandwidth": 2039 * 10**9, "device_memory_size": 80 << 30},
    "h100": {**_HOPPER, "name": "NVIDIA H100 80GB HBM3", "core_count": 132, "clock_rate_ghz": 1.98,
             "l2_cache_size": 50 << 20, "memory_bandwidth": 3350 * 10**9, "device_memory_size": 80 << 30},
    "h200": {**_HOPPER, "name": "NVIDIA H200", "core_count": 132, "clock_rate_ghz": 1.98,
             "l2_cache_size": 50 << 20, "memory_bandwidth": 4800 * 10**9, "device_memory_size": 141 * 10**9},
    "b200": {**_HOPPER, "name": "NVIDIA B200", "capability": (10, 0), "core_count": 148, "clock_rate_ghz": 1.965,
             "l2_cache_size": 126 << 20, "memory_bandwidth": 7700 * 10**9, "device_memory_size": 180 * 10**9},
}  # fmt: skip


def topology_devices(topology: str) -> list[Device]:
    """Returns the devices of a topology to compile for, without access to any device.

    Raises:
        ValueError: there is no such topology.
        ImportError: the compiler is not installed.
    """
    wanted = parse_topology(topology)
    return _gpu_devices(wanted) if wanted.chip.is_gpu else _tpu_devices(wanted)


def compiler_options(topology: str) -> dict[str, Any]:
    """Returns the compiler options of a topology."""
    return dict(GPU_OPTIONS) if parse_topology(topology).chip.is_gpu else {}


@contextlib.contextmanager
def traced_for(topology: str) -> Iterator[None]:
    """Makes JAX trace cuDNN's attention for absent GPUs, by patching its checks of this machine's GPU and cuDNN.

    The checks are private to JAX; under a version without them cuDNN's attention needs a GPU to plan.
    """
    if not parse_topology(topology).chip.is_gpu:
        yield
        return
    asked = None
    with contextlib.suppress(ImportError):
        asked = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    capability = _GPUS[parse_topology(topology).chip_name]["capability"]
    answers: dict[str, Callable[..., Any]] = {
        "check_cudnn_version": lambda: CUDNN[0] * 10000 + CUDNN[1] * 100,
        "check_compute_capability": lambda least: capability >= tuple(map(int, least.split("."))),
    }
    with contextlib.ExitStack() as patches:
        for name, answer in answers.items():
            if hasattr(asked, name):
                patches.enter_context(mock.patch.object(asked, name, answer))
        yield


def _tpu_devices(wanted: Topology) -> list[Any]:
    # no metadata server, no lock on a TPU that another process may be using, no log lines about the missing TPU
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"), ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"), ("TF_CPP_MIN_LOG_LEVEL", "3"), ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("planning needs the TPU compiler: pip install 'vit-linen[tpu]'") from None
    return _described("tpu", wanted.name, dict(wanted.chip.options), wanted.name)


def _gpu_devices(wanted: Topology) -> list[Any]:
    if not gpu_compiler.show():
        raise ImportError("planning for GPUs needs XLA's compiler for them: pip install 'vit-linen[gpu-plan]'")
    sizes = "x".join(map(str, (1, *wanted.shape)))  # slices, hosts, GPUs of each
    options = {"topology": sizes, "target_config": target_config(wanted.chip_name)}
    return _described("cuda", wanted.chip_name, options, wanted.name)


def _described(platform: str, name: str, options: Mapping[str, Any], topology: str) -> list[Any]:
    import jax
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform=platform, topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"no topology {topology!r}: {str(error).splitlines()[0]}") from None


def target_config(chip: str) -> str:
    """Returns a GPU's description for the compiler, as XLA's GpuTargetConfigProto in text form."""
    fields = dict(_GPUS[chip])
    name, (major, minor) = fields.pop("name"), fields.pop("capability")
    own = "\n".join(f"{key}: {value}" for key, value in fields.items())
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    cudnn = f"dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}"
    return (
        f"gpu_device_info {{\n{_COMMON}\n{own}\n{capability}\n}}\n"
        f'platform_name: "CUDA"\n{cudnn}\ndevice_description_str: "{name}"\n'
    )
