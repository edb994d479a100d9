"""Exports a model to a file, after its program has been compared with the model."""

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

# writes a program to a path, and files beside it, and returns the function that the file computes
Writer = Callable[[Path, Program], Callable[[np.ndarray], list[np.ndarray]]]
WRITERS: dict[str, Writer] = {".onnx": onnx_file.write, ".stablehlo": stablehlo_file.write}


@dataclasses.dataclass(frozen=True)
class Exported:
    """The written files, and the comparisons of their outputs with the model's."""

    files: tuple[Path, ...]
    names: tuple[str, ...]  # of the outputs
    comparisons: tuple[Comparison, ...]  # one an output


def check_target(path: Path) -> None:
    """Checks a path's format, and that the libraries of the format are installed.

    Raises:
        ValueError: the path is a folder, or its suffix is unknown.
        ImportError: a library is not installed.
    """
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
    """Writes a model as a program that runs without this library: `.onnx`, or `.stablehlo` for jax.export.

    The program takes batches of any size. It is run and compared with the model before the file appears. Its metadata
    have the config, the class names and the preprocessing: ONNX's metadata_props, or PATH.json beside StableHLO.

    Args:
        path: path of the file; its suffix is the format.
        model: the linen module.
        params: its parameters.
        output: 'logits' (embeddings, where the model has no classes), 'features', or 'intermediates': the tokens of
            blocks as grids (B, H, W, D), outputs layer_0, layer_1 ...
        layers: indices of the blocks of 'intermediates'; (): all.
        norm: apply the final norm to 'intermediates'.
        preprocessing: preprocessing of images, for `raw_size` and the metadata.
        raw_size: (height, width) of raw uint8 images (B, H, W, C) that the program preprocesses itself; None: it takes
            preprocessed images in float32.
        dtype: dtype of the matrix products, float32 or bfloat16.

    Raises:
        ValueError: a value does not fit, or the program's outputs differ from the model's.
        ImportError: a library of the format is not installed; the message says how to install it.
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
