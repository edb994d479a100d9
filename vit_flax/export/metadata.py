"""Metadata of an exported program."""

from __future__ import annotations

import json

import numpy as np

import vit_flax
from vit_flax.export.program import Program


def metadata(program: Program) -> dict[str, str]:
    """Returns the metadata as strings by name; values other than strings are JSON."""
    value = program.preprocessing
    names = None if value is None else value.class_names
    if names is not None and len(names) != program.model.config.num_classes:
        names = None
    told = {
        "vit_flax_version": vit_flax.__version__,
        "config": json.dumps(program.model.config.to_dict()),
        "output": program.output,
        "outputs": json.dumps(program.names),
        "dtype": program.dtype,
        "input": json.dumps({"shape": ["batch", *program.image_shape], "dtype": np.dtype(program.image_dtype).name}),
        "prepares_images": json.dumps(program.raw_size is not None),
    }
    if value is not None:
        told["preprocessing"] = json.dumps(value.to_dict())
    if names is not None:
        told["labels"] = json.dumps(value.class_descriptions or names if value else names)
    return told
