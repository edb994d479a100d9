"""Metric depth with DINOv2's linear heads: a backbone of any layout under a head of its own file."""

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

from vit_flax.config.dense import LinearDepthConfig
from vit_flax.convert import (
    ConversionError,
    Wish,
    read_checkpoint,
    read_source,
    unwrap,
    write_checkpoint,
)
from vit_flax.convert.linear_depth_head import HEAD_RULES, OWN_RULES, rules_of, split_head, told_by_head
from vit_flax.convert.moves import plan, to_params, to_tensors
from vit_flax.convert.orbax_folder import SUFFIX as ORBAX
from vit_flax.device_arrays import on_device_from_any_thread
from vit_flax.image_sizes import at_image_size
from vit_flax.models import VisionTransformer, build_model
from vit_flax.models.linear_depth import LinearDepthEstimator
from vit_flax.models.resample import bilinear
from vit_flax.models.shapes import expected_part_shapes
from vit_flax.preprocessing import torch_resize
from vit_flax.preprocessing.decode import Decoding
from vit_flax.preprocessing.depth import open_pixels
from vit_flax.preprocessing.evaluation import normalise
from vit_flax.presets.preset import IMAGENET
from vit_flax.reading import read_model

Source = str | os.PathLike[str] | Mapping[str, object]
MOST_PATCHES = 16_384  # most patches of an image at its own size


def load_linear_depth(
    backbone: Source,
    head: Source | None = None,
    *,
    layers: tuple[int, ...] | None = None,
    max_depth: float | None = None,
    wish: Wish | None = None,
) -> tuple[LinearDepthEstimator, PyTree]:
    """Returns the depth model of a backbone and one of DINOv2's linear heads, and its parameters.

    Args:
        backbone: weights as `vit_flax.load` takes them, or named arrays; with the head in them where `head` is None.
        head: a file of the head, dinov2_vits14_nyu_linear_head.pth, say, or its named arrays.
        layers: the blocks that a head reads, counted from 0; None: the last one of a head on one layer, DINOv2's own
            of a head on four.
        max_depth: the farthest bin in metres; None: from the head's stored config or file name (nyu: 10, kitti: 80).
        wish: how the backbone is read; None: as its files say.

    Raises:
        ConversionError: there is no head, or no backbone; they do not fit each other; `layers` or `max_depth` is
            missing where the files do not determine it.
    """
    wish = wish or Wish()
    opened = read_source(backbone, wish.float32)
    found, inner = split_head(opened)
    if inner is None:
        raise ConversionError(
            f"{opened.source}: is a depth head alone: name the weights of its backbone in its place, and pass "
            f"`head={opened.source!r}`"
        )
    if head is not None:
        given = read_source(head, wish.float32)
        found, _ = split_head(given)
        if found is None:
            raise ConversionError(f"{given.source}: holds no depth head: DINOv2's are named decode_head.conv_depth")
    if found is None:
        raise ConversionError(f"{opened.source}: is a backbone alone: pass `head=FILE`, a linear depth head of DINOv2")
    asked = dataclasses.replace(wish, overrides={"num_classes": 0, **wish.overrides}, tower="image")
    reading = read_model(unwrap(inner, wish.entry), asked)
    reading.log_notes()
    tower, tower_params = reading.build_image_tower()
    fields: Any = told_by_head(found, tower.config.feature_dim, tower.config.depth, layers, max_depth)
    resample = wish.resample or reading.layout.resample(tower.config) or "bicubic"
    model = LinearDepthEstimator(LinearDepthConfig(backbone=tower.config, resample=resample, **fields))
    steps = plan(found.shapes, rules_of(found), expected_part_shapes(model, ("head",)))
    flat = to_params(found, steps, on_device_from_any_thread())
    return model, {"backbone": tower_params, **unflatten_dict(flat, sep="/")}


def holds_linear_head(source: str | os.PathLike[str]) -> bool:
    """Returns whether weights hold one of DINOv2's linear depth heads, alone or over a backbone.

    Raises:
        ConversionError: they cannot be read, or hold another dense head.
    """
    return split_head(read_checkpoint(source))[0] is not None


def head_state_dict(params: PyTree) -> dict[str, np.ndarray]:
    """Returns the head's parameters under the names of DINOv2's files, every value bit for bit."""
    return to_tensors(_flat_head(params), HEAD_RULES)


def save_head(path: str | os.PathLike[str], model: LinearDepthEstimator, params: PyTree) -> None:
    """Writes the head: `vit_flax.save` writes the backbone, `build_backbone(model)` and `params["backbone"]`.

    Names are those of DINOv2's files, in an Orbax folder this library's own. A safetensors file and a folder also hold
    the fields that tensors do not determine: layers, min_depth, max_depth and upsample.

    Raises:
        ConversionError: the suffix is unknown, or the file cannot be written.
    """
    cfg = model.config
    told = {name: getattr(cfg, name) for name in ("min_depth", "max_depth", "upsample")}
    is_own = Path(path).suffix == ORBAX
    tensors = to_tensors(_flat_head(params), OWN_RULES) if is_own else head_state_dict(params)
    write_checkpoint(path, tensors, {"layers": list(cfg.layers), **told})


def _flat_head(params: PyTree) -> Any:
    return flatten_dict({"head": params["head"]}, sep="/")


def build_backbone(model: LinearDepthEstimator) -> VisionTransformer:
    """Returns the backbone, a VisionTransformer of the model's `params["backbone"]`."""
    return build_model(model.config.backbone)


def linear_depth_at_image_size(
    model: LinearDepthEstimator, params: PyTree, image_size: tuple[int, int]
) -> tuple[LinearDepthEstimator, PyTree]:
    """Returns the model and parameters for images of (height, width), position embeddings resized by `resample`."""
    backbone, inner = at_image_size(build_backbone(model), params["backbone"], image_size, model.config.resample)
    return model.clone(config=model.config.replace(backbone=backbone.config)), {**params, "backbone": inner}


def estimate_linear_depth(
    model: LinearDepthEstimator,
    params: PyTree,
    image: np.ndarray | bytes | str | os.PathLike[str],
    shorter_side: int | None = None,
) -> Float[np.ndarray, "h w"]:
    """Returns the depth of every pixel of an image in metres, uint8 (H, W, 3), a file's contents or a path.

    The image keeps its own size, as in DINOv2's code, or its shorter side is resized to `shorter_side`; it is padded on
    all sides to whole patches with the mean colour. The depth is resized bilinearly to the image.

    Raises:
        BadImageError: it cannot be read.
        ValueError: it is cut into more than `MOST_PATCHES` patches and `shorter_side` is None.
    """
    pixels = open_pixels(image, IMAGENET[0], Decoding(exif=True))
    height, width = pixels.shape[:2]
    patch = model.config.backbone.patch_size
    scale = 1 if shorter_side is None else shorter_side / min(height, width)
    sides = (max(round(scale * height), 1), max(round(scale * width), 1))
    count = -(-sides[0] // patch[0]) * -(-sides[1] // patch[1])
    if shorter_side is None and count > MOST_PATCHES:
        raise ValueError(
            f"an image of {height}x{width} is cut into {count:,} patches, and attention compares each with each: pass "
            "`shorter_side=480` to shrink it first"
        )
    array = normalise(torch_resize.resize(pixels, sides, "bicubic"), *IMAGENET)
    array = np.pad(array, [*(_around(side, step) for side, step in zip(sides, patch, strict=True)), (0, 0)])
    sized, own = linear_depth_at_image_size(model, params, (array.shape[0], array.shape[1]))
    depth = np.asarray(jax.jit(sized.apply)({"params": own}, jnp.asarray(array[None]))[0])
    rows, columns = (bilinear(old, new) for old, new in zip(depth.shape, (height, width), strict=True))
    return (rows @ depth.astype(np.float64) @ columns.T).astype(depth.dtype)


def _around(side: int, patch: int) -> tuple[int, int]:
    """Returns the padding before and after that makes a side one of whole patches."""
    more = -side % patch
    return more // 2, more - more // 2
