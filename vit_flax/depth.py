"""Monocular depth estimation: Depth Anything, read from transformers' folders, at each image's own aspect ratio."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, PyTree

from vit_flax.config.dense import DepthConfig
from vit_flax.convert import (
    Checkpoint,
    ConversionError,
    Wish,
    get_layout,
    read_checkpoint,
    read_source,
    write_checkpoint,
)
from vit_flax.convert.depth_anything import (
    BACKBONE,
    LAYOUT,
    LINEAR,
    check_backbone,
    read_depth_config,
    rules,
    write_depth_config,
)
from vit_flax.convert.folder import read_json
from vit_flax.convert.moves import plan, to_params, to_tensors
from vit_flax.convert.orbax_folder import SUFFIX as ORBAX
from vit_flax.device_arrays import on_device_from_any_thread
from vit_flax.image_sizes import at_image_size
from vit_flax.models import VisionTransformer, build_model
from vit_flax.models.depth_estimator import DepthEstimator
from vit_flax.models.resample import MODES
from vit_flax.models.shapes import expected_part_shapes
from vit_flax.preprocessing.depth import DepthPreprocessing
from vit_flax.reading import read_model
from vit_flax.writing import flat_params

PREPROCESSOR = "preprocessor_config.json"
_PARTS = ("neck", "head")  # parts of a depth model beside its backbone


def load_depth(
    source: str | os.PathLike[str] | Mapping[str, object],
    config: Mapping[str, object] | None = None,
    image_size: tuple[int, int] | int | None = None,
    float32: bool = False,
) -> tuple[DepthEstimator, PyTree]:
    """Returns the depth model of transformers' folder, hf://owner/name or named arrays, and its parameters.

    Args:
        source: the folder or address, or named arrays.
        config: the contents of a config.json; None: the one beside the weights.
        image_size: (height, width) or the side of a square, to which position embeddings are resized; None: the
            config's.
        float32: cast tensors to float32.

    Raises:
        ConversionError: the model is no Depth Anything, or a tensor is missing, unexpected or misshapen (all listed).
    """
    checkpoint = read_source(source, float32)
    told = config if config is not None else checkpoint.config
    if told is None:
        raise ConversionError(
            f"{checkpoint.source}: no config.json beside it says what depth model it is: pass "
            f"`config='config.json'`; {LINEAR}"
        )
    fields: dict[str, Any] = read_depth_config(told, checkpoint.source)
    inner = {name: name.removeprefix(BACKBONE) for name in checkpoint.shapes if name.startswith(BACKBONE)}
    size = {} if image_size is None else {"image_size": image_size}
    wish = Wish(config=dict(told["backbone_config"]), overrides=size)  # pyright: ignore[reportArgumentType, reportCallIssue]
    reading = read_model(dataclasses.replace(checkpoint.renamed(inner), config=None), wish)
    backbone, backbone_params = reading.build_image_tower()
    full = DepthConfig(backbone=backbone.config, **fields)
    model = DepthEstimator(full)
    rest = _without(checkpoint, set(inner))
    steps = plan(rest.shapes, rules(full), expected_part_shapes(model, _PARTS))
    flat = to_params(rest, steps, on_device_from_any_thread())
    return model, {"backbone": backbone_params, **unflatten_dict(flat, sep="/")}


def _without(checkpoint: Checkpoint, names: set[str]) -> Checkpoint:
    shapes = {name: shape for name, shape in checkpoint.shapes.items() if name not in names}
    return dataclasses.replace(checkpoint, shapes=shapes)


def depth_state_dict(model: DepthEstimator, params: PyTree) -> dict[str, np.ndarray]:
    """Returns the parameters as NumPy arrays under transformers' names, every value bit for bit.

    Raises:
        ConversionError: transformers' class cannot hold the model, or the parameters are not the model's.
    """
    layout, backbone = get_layout(LAYOUT), _backbone(model)
    check_backbone(backbone.config)
    if refusals := layout.refusals(backbone.config):
        raise ConversionError(f"layout {LAYOUT!r} cannot hold the backbone: {'; '.join(refusals)}")
    own = layout.write(flat_params(backbone, params["backbone"]), backbone.config)
    rest: Any = flatten_dict({name: params[name] for name in _PARTS}, sep="/")
    return {**{f"{BACKBONE}{name}": array for name, array in own.items()}, **to_tensors(rest, rules(model.config))}


def save_depth(
    path: str | os.PathLike[str],
    model: DepthEstimator,
    params: PyTree,
    preprocessing: DepthPreprocessing | None = None,
) -> None:
    """Writes a folder that transformers' AutoModelForDepthEstimation reads, or another kind of file as `vit_flax.save`.

    Raises:
        ConversionError: as `depth_state_dict`; the file cannot be written, or is a single one, which has no place for
            `preprocessing`.
    """
    if preprocessing is not None and Path(path).suffix not in ("", ORBAX):
        raise ConversionError(f"{path}: a single file holds no {PREPROCESSOR}; write a folder: no suffix, or {ORBAX}")
    tensors = depth_state_dict(model, params)
    layout = get_layout(LAYOUT)
    assert layout.config_file is not None
    file = write_depth_config(model.config, layout.config_file(model.config.backbone))
    files = {PREPROCESSOR: (preprocessing or DepthPreprocessing()).to_huggingface()}
    write_checkpoint(path, tensors, file, file, files)


def _backbone(model: DepthEstimator) -> VisionTransformer:
    return build_model(model.config.backbone)


def depth_at_image_size(
    model: DepthEstimator, params: PyTree, image_size: tuple[int, int]
) -> tuple[DepthEstimator, PyTree]:
    """Returns the model and parameters for images of (height, width), position embeddings resized bicubically."""
    backbone, inner = at_image_size(_backbone(model), params["backbone"], image_size, "bicubic")
    return model.clone(config=model.config.replace(backbone=backbone.config)), {**params, "backbone": inner}


def read_depth_preprocessing(source: str | os.PathLike[str]) -> tuple[DepthPreprocessing, str]:
    """Returns the preprocessing of a depth model's folder, and a note where it is the default ('' otherwise).

    Raises:
        ConversionError: there are no weights, or the file is no JSON object.
        ValueError: preprocessor_config.json is of another processor, or one that cannot be expressed.
    """
    path = read_checkpoint(source).path
    file = None if path is None else path.parent / PREPROCESSOR
    if file is None or not file.is_file():
        return DepthPreprocessing(), f"{source}: no {PREPROCESSOR}: images are prepared as Depth Anything's are"
    return DepthPreprocessing.from_huggingface(read_json(file), str(file)), ""


def estimate_depth(
    model: DepthEstimator,
    params: PyTree,
    image: np.ndarray | bytes | str | os.PathLike[str],
    preprocessing: DepthPreprocessing | None = None,
) -> Float[np.ndarray, "h w"]:
    """Returns the depth of every pixel of an image, uint8 (H, W, 3), a file's contents or a path.

    Depth is in metres for metric models, otherwise relative (larger is nearer). The image is resized to whole patches
    and the depth back, as transformers' DPTImageProcessor does both.

    Raises:
        BadImageError: the image cannot be read.
    """
    prepared = preprocessing or DepthPreprocessing()
    pixels = prepared.open(image)
    array = prepared.prepare(pixels)
    sized, own = depth_at_image_size(model, params, (array.shape[0], array.shape[1]))
    depth = jax.jit(sized.apply)({"params": own}, jnp.asarray(array[None]))[0]
    rows, columns = (MODES["bicubic"](old, new) for old, new in zip(depth.shape, pixels.shape[:2], strict=True))
    return (rows @ np.asarray(depth, np.float64) @ columns.T).astype(depth.dtype)
