"""Tests run on the CPU unless JAX_PLATFORMS is set, and compile without LLVM's optimiser."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # with libtpu, `vit-flax plan`'s compiler, JAX looks for a TPU

# These models run for milliseconds and compile for seconds, nearly all of it in LLVM's optimiser. XLA's own passes are
# unchanged without it; tests of the command line in processes of their own keep it.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"  # the default, 40, is too short beside other work
)

from vit_flax.cli.startup import hide_absent_accelerators

hide_absent_accelerators()  # the CUDA plugin may be installed as `vit-flax plan`'s compiler

import jax
import pytest
from jaxtyping import install_import_hook

# Calls of the linen modules and of the mathematics of training are checked against their annotations, shapes included.
# Module by module: a package's name would include its tests, whose assertions pytest rewrites.
_ROOT = Path(__file__).parent
_CHECKED = ("models/*", "train/ema", "train/losses", "train/mixing")
# patch_embed, vision_transformer and those of texts take NumPy arrays and raise their own errors; placed reshapes
# batches of symbolic size, which is no int; loop counters of kernels are tracers where int is annotated; intermediates
# raises its own error for indices of any type; beartype does not take a Protocol as a class
_UNCHECKED = (
    "__init__", "placed", "patch_embed", "vision_transformer", "text_transformer", "two_towers",
    "row_attention", "splash", "attention_backends", "intermediates", "loop",
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


@pytest.fixture(autouse=True, scope="module")
def _forgetting() -> Iterator[None]:
    """Drops the compiled programs of a file, which no other file uses and which add up to gigabytes."""
    yield
    jax.clear_caches()
