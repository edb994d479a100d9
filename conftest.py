"""Tests run on the CPU unless JAX_PLATFORMS is set, and compile fast, not well."""

import math
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # with libtpu, `vit-flax plan`'s compiler, JAX looks for a TPU

# These models run for milliseconds and compile for seconds, nearly all of it in LLVM's optimiser and in the MLIR passes
# that emit fused loops, for which XLA of JAX 0.10 also has an older, shorter emitter. XLA's own passes are unchanged
# without them. What users compile is tested as well: with everything where `compare` runs in a process of its own, with
# the MLIR emitter in processes that train (golden losses, Ctrl-C, several devices) and in tests that take
# `users_compiler` (those that read compiled programs, parity of one ViT and one T2T-ViT).
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"  # the default, 40, is too short beside other work
)

from vit_flax.cli.startup import hide_absent_accelerators

hide_absent_accelerators()  # the CUDA plugin may be installed as `vit-flax plan`'s compiler

import jax
import pytest
from jaxtyping import install_import_hook

_TWO_EMITTERS = version("jaxlib").startswith("0.10.") and os.environ["JAX_PLATFORMS"] == "cpu"
_FLAGS = os.environ["XLA_FLAGS"] + (" --xla_cpu_use_fusion_emitters=false" if _TWO_EMITTERS else "")
if _TWO_EMITTERS:  # XLA reads its flags once, when a platform starts; libtpu exits on flags that it does not know
    with mock.patch.dict(os.environ, XLA_FLAGS=_FLAGS):
        jax.devices()

# Calls of the linen modules and of the mathematics of training are checked against their annotations, shapes included.
# Module by module: a package's name would include its tests, whose assertions pytest rewrites.
_ROOT = Path(__file__).parent
_CHECKED = ("models/*", "train/ema", "train/losses", "train/mixing")
# patch_embed, vision_transformer and those of texts take NumPy arrays and raise their own errors; placed reshapes
# batches of symbolic size, which is no int; loop counters of kernels are tracers where int is annotated; intermediates
# raises its own error for indices of any type; beartype does not take a Protocol as a class
_UNCHECKED = (
    "__init__", "placed", "patch_embed", "vision_transformer", "text_transformer", "two_towers",
    "row_attention", "splash", "attention_backends", "softmax_attention", "intermediates", "loop",
)  # fmt: skip
install_import_hook(
    [
        ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        for pattern in _CHECKED
        for path in sorted((_ROOT / "vit_flax").glob(f"{pattern}.py"))
        if path.stem not in _UNCHECKED and not path.name.endswith("_test.py")
    ],
    # an int is a float; parameters applied without jit may be NumPy arrays
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, hint_overrides=beartype.FrozenDict("
    "{__import__('jax').Array: __import__('jax').Array | __import__('numpy').ndarray})))",
)


@pytest.fixture(scope="session")
def xla_flags() -> str:
    """Returns the XLA flags of this process, for others that must compute the same bits."""
    return _FLAGS


@pytest.fixture
def users_compiler() -> dict[str, str | bool]:
    """Returns options that compile a program with the emitter that users have, without LLVM's optimiser."""
    return {"xla_cpu_use_fusion_emitters": True} if _TWO_EMITTERS else {}


_MOST_BYTES = 3 << 30


@pytest.fixture(autouse=True, scope="module")
def _forgetting() -> Iterator[None]:
    """Drops compiled programs before they add up to gigabytes; what files have in common are single operations."""
    yield
    if _resident_bytes() > _MOST_BYTES:
        jax.clear_caches()


def _resident_bytes() -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return math.inf
