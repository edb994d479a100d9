"""Tests run on the CPU unless the environment says otherwise, and compile without LLVM's optimiser."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu, which `vit-flax plan` asks, would make JAX seek a TPU

# These models run for milliseconds and compile for seconds, nearly all of it in LLVM's optimiser. Without it XLA's own
# rewriting and fusion stay as they are; the command line's tests run in processes of their own, with everything on.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"  # 40 where other work runs beside the tests are too few
)

from vit_flax.cli.startup import hide_absent_accelerators

hide_absent_accelerators()  # the CUDA plugin may be here as the compiler that `vit-flax plan` asks

import jax
import pytest
from jaxtyping import install_import_hook

# Calls of the linen modules and of the mathematics of training are checked against their annotations, shapes included.
# Module by module: a package's name would take its tests along, whose assertions pytest rewrites.
_ROOT = Path(__file__).parent
_CHECKED = ("models/*", "train/ema", "train/losses", "train/mixing")
# patch_embed, vision_transformer and those of texts are the door, where arrays of NumPy come in and wrong ones are told
# in our own words; placed reshapes batches of symbolic size, which is no int; counters of kernels' loops are traced
# where they are said to be int; intermediates refuses indices of any type in its own words; a Protocol is no class
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
    # an int is a float; parameters that are applied without jit may be NumPy's
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, hint_overrides=beartype.FrozenDict("
    "{__import__('jax').Array: __import__('jax').Array | __import__('numpy').ndarray})))",
)


@pytest.fixture(autouse=True, scope="module")
def _forgetting() -> Iterator[None]:
    """Drops what was compiled for a file's models, which no other file uses: it adds up to gigabytes."""
    yield
    jax.clear_caches()
