"""Exports a model to a file, once its program has been compared with the model."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from vit_flax.export import onnx_file, stablehlo_file
from vit_flax.export.checking import Comparison, compare
from vit_flax.export.program import Program
from vit_flax.models import VisionTransformer
from vit_flax.preprocessing.evaluation import Preprocessing

# writes a file (and others beside it) into a folder, and returns the function that it computes there
Writer = Callable[[Path, Program], Callable[[np.ndarray], list[np.ndarray]]]
WRITERS: dict[str, Writer] = {".onnx": onnx_file.write, ".stablehlo": stablehlo_file.write}


@dataclasses.dataclass(frozen=True)
class Exported:
    """The files that were written, and their comparisons with the model."""

    files: tuple[Path, ...]
    names: tuple[str, ...]  # of the outputs
    comparisons: tuple[Comparison, ...]  # one an output


def check_target(path: Path) -> None:
    """Raises ValueError or ImportError where nothing can be written there."""
    if path.suffix not in WRITERS:
        raise ValueError(f"{path}: unknown suffix; use {' or '.join(WRITERS)}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder")
    if path.suffix == ".onnx":
        onnx_file.libraries()


def export_model(
    path: str | os.PathLike[str],
    model: VisionTransformer,
    params: PyTree,
    output: str = "logits",
    *,
    layers: tuple[int, ...] = (),
    norm: bool = False,
    preprocessing: Preprocessing | None = None,
    raw_size: tuple[int, int] | None = None,
    dtype: str = "float32",
) -> Exported:
    """Writes a model as a program that needs neither this library nor JAX's: `.onnx`, or `.stablehlo` of jax.export.

    The file takes any number of images at once. It is run and compared with the model before it appears, whole or not
    at all. It tells the config, the classes and how images are prepared: in ONNX's metadata_props, and of StableHLO in
    PATH.json.

    Args:
        path: of the file; its suffix says which format.
        model: the linen module.
        params: its parameters.
        output: 'logits' (embeddings, where the model has no classes), 'features', or 'intermediates': the tokens of
            blocks as grids (B, H, W, D), outputs layer_0, layer_1 ...
        layers: of 'intermediates', numbers of blocks; (): all.
        norm: of 'intermediates', apply the final norm.
        preprocessing: how images are prepared; it is written beside the program.
        raw_size: (height, width) of raw uint8 images (B, H, W, C) that the program prepares itself, as `preprocessing`
            says; None: it takes prepared ones, float32.
        dtype: of the matrix products, float32 or bfloat16.

    Raises:
        ValueError: a value does not fit, or what was written computes something else than the model.
        ImportError: a library that the format needs is not installed; the message says how to get it.
    """
    path = Path(path)
    check_target(path)
    if raw_size is not None:
        raw_size = (int(raw_size[0]), int(raw_size[1]))
    program = Program(
        model=model, params=params, output=output, layers=tuple(layers), norm=norm, preprocessing=preprocessing,
        raw_size=raw_size, dtype=dtype,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    beside.mkdir()
    try:
        run = WRITERS[path.suffix](beside / path.name, program)
        comparisons = compare(program, run)
        wrong = [f"{name}: {found}" for name, found in zip(program.names, comparisons, strict=True) if not found.agrees]
        if wrong:
            raise ValueError(f"{path}: the program is not the model, so nothing is written ({'; '.join(wrong)})")
        files = sorted(beside.iterdir(), key=lambda file: file.name == path.name)  # the program last
        for file in files:
            os.replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Exported(tuple(path.parent / file.name for file in files), program.names, tuple(comparisons))
