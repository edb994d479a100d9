"""TPU chips as published, and topologies of them for the compiler."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip: rates a second, memory in bytes.

    Reference: cloud.google.com/tpu/docs, the pages 'TPU v4', 'v5e', 'v5p' and 'v6e' (system architecture).
    """

    flops: float  # bf16 operations of the matrix units, dense
    memory: float
    bandwidth: float  # bytes between memory and chip
    options: tuple[tuple[str, str], ...] = ()  # of the topology: two cores that act as one device


CHIPS = {
    "v4": Chip(flops=275e12, memory=32e9, bandwidth=1228e9, options=(("chip_config_name", "megacore"),)),
    "v5e": Chip(flops=197e12, memory=16e9, bandwidth=819e9),
    "v5p": Chip(flops=459e12, memory=95e9, bandwidth=2765e9),
    "v6e": Chip(flops=918e12, memory=32e9, bandwidth=1640e9),
}


def find_chip(topology: str) -> Chip:
    """Returns the chip of a topology such as 'v5e:4x4'.

    Raises:
        ValueError: it is not of that form, or the chip is unknown.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise ValueError(f"unknown chip {name!r} in topology {topology!r}; there are {', '.join(CHIPS)}")
    if not re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2}){1,2}", shape):
        raise ValueError(f"topology {topology!r} is not of the form {name}:4x4 or {name}:2x2x2")
    if math.prod(map(int, shape.split("x"))) > 16384:
        raise ValueError(f"topology {topology!r} has more than 16384 chips")
    return CHIPS[name]


def topology_devices(topology: str) -> list[Any]:
    """Returns the devices of a topology, to compile for; no TPU is needed or touched.

    Raises:
        ValueError: there is no such topology.
        ImportError: libtpu, the compiler, is not installed.
    """
    chip = find_chip(topology)
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
    import jax
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **dict(chip.options))
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"no topology {topology!r}: {str(error).splitlines()[0]}") from None
    return list(described.devices)
