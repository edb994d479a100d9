"""StableHLO as serialized by jax.export, for CPUs, CUDA and TPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from vit_flax.export.metadata import metadata
from vit_flax.export.program import Program

_PLATFORMS = ("cpu", "cuda", "tpu")
_MOST = 2**31 - 2**20  # bytes: jax.export's format has 31-bit sizes


def write(path: Path, program: Program) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Writes the program, with its metadata beside it, and returns the function that the file holds.

    Raises:
        ImportError: flatbuffers is not installed, which jax.export writes with.
        ValueError: the program is too large for jax.export.
    """
    try:
        import flatbuffers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("StableHLO needs flatbuffers: pip install flatbuffers") from error
    from jax import export  # a submodule that `import jax` does not load

    height, width, channels = program.image_shape
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, height, width, channels), program.image_dtype)
    exported = export.export(jax.jit(program.function()), platforms=_PLATFORMS)(images)
    data = exported.serialize()
    if len(data) > _MOST:
        raise ValueError(
            f"the program has {len(data):,} bytes, and jax.export holds {_MOST:,}: take `dtype='bfloat16'`"
        )
    path.write_bytes(data)
    path.with_name(f"{path.name}.json").write_text(json.dumps(metadata(program), indent=1) + "\n", "utf-8")
    loaded = export.deserialize(bytearray(path.read_bytes()))
    call = jax.jit(loaded.call)
    return lambda images: [np.asarray(array) for array in call(images)]
