"""Image files to arrays of bytes."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Modes that Pillow turns into 8-bit grey or colour without a choice of ours. Transparency is dropped, not blended, and
# EXIF orientation is not applied: both as torchvision's and timm's loaders do.
CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
TARGETS = {1: "L", 3: "RGB"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


class BadImageError(ValueError):
    """An image that cannot be read; the message says why."""


def import_pillow() -> Any:
    """Returns the module PIL.Image.

    Raises:
        ImportError: Pillow is not installed; the message says how to get it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'vit-linen[images]'") from error
    return Image


def decode_image(data: bytes | str | os.PathLike[str], channels: int = 3) -> np.ndarray:
    """Returns the first frame of an image file as (height, width, channels) uint8.

    Args:
        data: the file's contents, or its path.
        channels: 1 (grey) or 3 (red, green, blue).

    Raises:
        BadImageError: it is not a whole image, or of a mode that has no one meaning in 8 bits: 16-bit and floating
            point pixels, whose range nobody states.
    """
    return to_array(open_image(data, channels))


def open_image(data: bytes | str | os.PathLike[str], channels: int = 3) -> Image.Image:
    """Returns the decoded Pillow image in mode L or RGB; errors are those of `decode_image`."""
    image_module = import_pillow()
    if channels not in TARGETS:
        raise ValueError(f"images are read with 1 or 3 channels, got channels={channels}")
    try:
        with image_module.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            if image.mode not in CONVERTED:
                raise BadImageError(
                    f"mode {image.mode!r} (pixels of more than 8 bits) has no one meaning in 8 bits: convert it first"
                )
            return image.convert(TARGETS[channels])  # decodes as well
    except BadImageError:
        raise
    except FileNotFoundError:
        raise BadImageError("no such file") from None
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and others
        raise BadImageError(f"not a readable image ({' '.join(str(error).split())[:120]})") from error


def to_array(image: Image.Image) -> np.ndarray:
    """Returns an image of mode L or RGB as (height, width, channels) uint8."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def to_image(array: np.ndarray) -> Image.Image:
    """Returns (height, width, 1 or 3) uint8 as a Pillow image of mode L or RGB."""
    return import_pillow().fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def match_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Returns (height, width) or (height, width, 1, 3 or 4) uint8 with the number of channels asked for.

    Raises:
        BadImageError: it is no such array.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise BadImageError(
            f"an image must be (height, width), or that with 1, 3 or 4 channels last, of uint8; "
            f"got {array.shape} of {array.dtype}"
        )
    if array.shape[-1] == 4:
        array = array[..., :3]
    if array.shape[-1] == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=-1)
    return to_array(to_image(array).convert("L"))
