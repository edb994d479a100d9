"""Published figures of accelerators (peak FLOP/s, bandwidth, memory, links), and the names of their topologies."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip: rates per second, memory in bytes, links in bytes per second, one way and of one chip.

    Reference: cloud.google.com/tpu/docs, the pages 'TPU v4', 'v5e', 'v5p' and 'v6e' (system architecture); NVIDIA's
    data sheets of A100 80GB SXM, H100 SXM, H200 SXM and HGX B200 (dense rates), and of DGX A100, H100, H200 and B200
    for what a host has: 8 GPUs, each with an adapter of 200 (A100) or 400 Gbit/s.
    """

    flops: float  # bf16 operations of the matrix units, dense
    memory: float
    bandwidth: float  # memory bandwidth
    link: float  # to the other chips of the slice or host
    link_name: str = "ICI"
    per_host: int = 0  # chips that the link joins; 0: all
    network: float = math.inf  # to chips of other hosts
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of products that are not bf16
    options: tuple[tuple[str, str], ...] = ()  # of the topology: two cores that act as one device
    kinds: tuple[str, ...] = ()  # prefix of JAX's device_kind
    fast_memory: int = 0  # bytes of VMEM, as JAX's Pallas has it

    def compute_seconds(self, flops: Mapping[str, int]) -> float:
        """Returns the least time of matrix products, by their kind as in `vit_flax.plan.products`."""
        return sum(number / self.rates.get(kind, self.flops) for kind, number in flops.items())

    @property
    def is_gpu(self) -> bool:
        """Whether the chip is a GPU; otherwise it is a TPU."""
        return self.link_name == "NVLink"


def _tpu(flops: float, memory: float, bandwidth: float, link: float, **fields: object) -> Chip:
    # float32 products are 3 or 6 of bfloat16; float64's are sums of more
    rates = {"f32:high": flops / 3, "f32:highest": flops / 6, "f64": flops / 6}
    return Chip(flops=flops, memory=memory, bandwidth=bandwidth, link=link, rates=rates, **fields)  # pyright: ignore


def _gpu(kind: str, flops: float, tf32: float, fp32: float, fp64: float, memory: float, bandwidth: float, link: float,
         network: float) -> Chip:  # fmt: skip
    rates = {"f32:default": tf32, "f32:high": tf32 / 3, "f32:highest": fp32, "f64": fp64}
    return Chip(flops=flops, memory=memory, bandwidth=bandwidth, link=link, link_name="NVLink", per_host=8,
                network=network, rates=rates, kinds=(kind,))  # fmt: skip


MIB = 2**20
# published figures of each chip, by its name in `plan --topology`
CHIPS = {
    "v4": _tpu(
        275e12,
        32e9,
        1228e9,
        300e9,
        options=(("chip_config_name", "megacore"),),
        kinds=("TPU v4",),
        fast_memory=16 * MIB,
    ),
    "v5e": _tpu(197e12, 16e9, 819e9, 200e9, kinds=("TPU v5 lite", "TPU v5e"), fast_memory=128 * MIB),
    "v5p": _tpu(459e12, 95e9, 2765e9, 600e9, kinds=("TPU v5", "TPU v5p"), fast_memory=64 * MIB),
    "v6e": _tpu(918e12, 32e9, 1640e9, 400e9, kinds=("TPU v6 lite", "TPU v6e"), fast_memory=128 * MIB),
    "a100": _gpu("NVIDIA A100", 312e12, 156e12, 19.5e12, 19.5e12, 80e9, 2039e9, 300e9, 25e9),
    "h100": _gpu("NVIDIA H100", 989e12, 495e12, 67e12, 67e12, 80e9, 3350e9, 450e9, 50e9),
    "h200": _gpu("NVIDIA H200", 989e12, 495e12, 67e12, 67e12, 141e9, 4800e9, 450e9, 50e9),
    "b200": _gpu("NVIDIA B200", 2250e12, 1125e12, 75e12, 37e12, 180e9, 7700e9, 900e9, 50e9),
}


def chip_of_kind(kind: str) -> Chip | None:
    """Returns the chip of a JAX device_kind; None for others than those above."""
    found = [(len(name), chip) for chip in CHIPS.values() for name in chip.kinds if kind.startswith(name)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


# TPU names that count chips, and names that count TensorCores, two of which are one device here (megacore)
_BY_CHIPS = {"v5litepod": "v5e", "v5e": "v5e", "v6e": "v6e"}
_BY_CORES = {"v4": "v4", "v5p": "v5p"}
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
          1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind: the shape of a TPU slice, or (hosts, GPUs per host)."""

    chip_name: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """The chip."""
        return CHIPS[self.chip_name]

    @property
    def name(self) -> str:
        """The compiler's name of the topology, such as 'v5e:4x4'."""
        sizes = self.shape[1:] if self.chip.is_gpu and self.shape[0] == 1 else self.shape
        return f"{self.chip_name}:{'x'.join(map(str, sizes))}"


def parse_topology(text: str) -> Topology:
    """Returns the topology of a name: 'v5e:4x4', a TPU's own such as 'v5litepod-16' or 'v4-8', 'h100:8', 'h100:4x8'.

    Raises:
        ValueError: the name has another form, or the chip is unknown.
    """
    if found := re.fullmatch(r"([a-z0-9]+)-(\d+)", text):
        return _by_number(text, found[1], int(found[2]))
    name, _, shape = text.partition(":")
    if name in ("v2", "v3"):
        raise ValueError(_too_old(text, name))
    if name not in CHIPS:
        raise ValueError(f"unknown chip {name!r} in topology {text!r}; there are {', '.join(CHIPS)}")
    chip = CHIPS[name]
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?" if chip.is_gpu else r"[1-9]\d{0,2}(x[1-9]\d{0,2}){1,2}", shape):
        form = f"{name}:8 or {name}:4x8 (hosts x GPUs)" if chip.is_gpu else f"{name}:4x4 or {name}:2x2x2"
        raise ValueError(f"topology {text!r} is not of the form {form}")
    sizes = tuple(map(int, shape.split("x")))
    if chip.is_gpu:
        sizes = sizes if len(sizes) == 2 else (1, *sizes)
        if sizes[1] > chip.per_host:
            hosts = -(-math.prod(sizes) // chip.per_host)
            raise ValueError(f"a host has {chip.per_host} GPUs at most: write {name}:{hosts}x{chip.per_host}")
    if math.prod(sizes) > 16384:
        raise ValueError(f"topology {text!r} has more than 16384 chips")
    return Topology(name, sizes)


def _by_number(text: str, name: str, number: int) -> Topology:
    if name in ("v2", "v3"):
        raise ValueError(_too_old(text, name))
    chip = _BY_CHIPS.get(name) or _BY_CORES.get(name)
    if chip is None:
        near = f"write {name}:{number}" if name in CHIPS else f"there are {', '.join([*_BY_CHIPS, *_BY_CORES])}"
        raise ValueError(f"no TPU is called {text!r}; {near}")
    shapes = _FLAT if name in _BY_CHIPS else _CUBES
    chips = number if name in _BY_CHIPS else number // 2
    if chips not in shapes or (name in _BY_CORES and number % 2):
        sizes = ", ".join(f"{name}-{size if name in _BY_CHIPS else 2 * size}" for size in shapes)
        raise ValueError(f"{text!r} has no usual shape: give it, such as {chip}:{shapes[16]}, or one of {sizes}")
    return Topology(chip, tuple(map(int, shapes[chips].split("x"))))


def _too_old(text: str, name: str) -> str:
    return f"no topology {text!r}: the compiler (libtpu) no longer has TPU {name}; there are {', '.join(CHIPS)}"


def find_chip(topology: str) -> Chip:
    """Returns the chip of a topology's name.

    Raises:
        ValueError: there is no such topology.
    """
    return parse_topology(topology).chip
