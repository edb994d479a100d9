"""Images of any aspect ratio as padded patches, the input of SigLIP 2's NaFlex models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import PyTree  # which imports JAX

Patches = tuple[np.ndarray, np.ndarray, np.ndarray]  # what `to_patches` returns: patches, mask, grids


def naflex_size(height: int, width: int, patch_size: int, max_num_patches: int = 256) -> tuple[int, int]:
    """Returns the (height, width) of at most `max_num_patches` whole patches that nearly keeps the aspect ratio.

    Reference: transformers' get_image_size_for_max_num_patches, with the same bisection.
    """

    def sides(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch_size)) for side in (height, width))
        return rows * patch_size, columns * patch_size

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, columns = (side // patch_size for side in sides(middle))
        low, high = (middle, high) if rows * columns <= max_num_patches else (low, middle)
    return sides(low)


def to_patches(images: Sequence[np.ndarray], patch_size: int, max_num_patches: int | None = 256) -> Patches:
    """Cuts resized and normalised images (H, W, C) into patches, padded to one number.

    Returns:
        patches (B, N, p p C), a mask (B, N) that is False for padding, and the grids (B, 2) of rows and columns; N is
        max_num_patches, or None's: the most patches of an image.

    Raises:
        ValueError: a side does not divide into patches, or there are more patches than allowed.
    """
    largest = max((image.shape[0] // patch_size) * (image.shape[1] // patch_size) for image in images)
    limit = largest if max_num_patches is None else max_num_patches
    width = patch_size * patch_size * images[0].shape[-1]
    patches = np.zeros((len(images), limit, width), images[0].dtype)
    mask = np.zeros((len(images), limit), bool)
    grids = np.zeros((len(images), 2), np.int32)
    for index, image in enumerate(images):
        (rows, below), (columns, beside) = (divmod(side, patch_size) for side in image.shape[:2])
        count = rows * columns
        if below or beside or not 0 < count <= limit:
            raise ValueError(
                f"image {index} of {image.shape[0]}x{image.shape[1]} pixels is not cut into 1 to {limit} "
                f"patches of {patch_size}: resize it to naflex_size(...) first"
            )
        cut = image.reshape(rows, patch_size, columns, patch_size, -1).swapaxes(1, 2)
        patches[index, :count] = cut.reshape(count, width)
        mask[index, :count] = True
        grids[index] = rows, columns
    return patches, mask, grids


def model_inputs(images: PyTree) -> tuple[PyTree, dict[str, PyTree]]:
    """Returns the first argument of a model's methods, and those by name."""
    if not isinstance(images, tuple):
        return images, {}
    patches, mask, grids = images
    return patches, {"mask": mask, "spatial_shapes": grids}
