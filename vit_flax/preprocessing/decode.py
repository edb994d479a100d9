"""Decodes image files to uint8 arrays."""

from __future__ import annotations

import dataclasses
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Modes that Pillow converts to 8-bit grey or RGB. Alpha is dropped, not blended, as torchvision's, timm's and
# transformers' loaders do. A transparent colour (tRNS) stays in the image's info after the conversion.
CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
TARGETS = {1: "L", 3: "RGB"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


class BadImageError(ValueError):
    """An image that cannot be read; the message says why."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Decoding options: EXIF orientation, and the range of wide pixels."""

    exif: bool = False  # apply the EXIF orientation: transformers does, torchvision and timm do not
    pixel_range: tuple[float, float] | None = None  # range of wider pixels that maps to 0..255, clipped beyond
    # paint the colour that a file calls transparent (PNG's tRNS, GIF) white: transformers' do_convert_rgb does
    white_transparency: bool = False


def import_pillow() -> Any:
    """Returns the module PIL.Image.

    Raises:
        ImportError: Pillow is not installed; the message says how to install it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'vit-linen[images]'") from error
    return Image


def decode_image(
    data: bytes | str | os.PathLike[str],
    channels: int = 3,
    decoding: Decoding | None = None,
) -> np.ndarray:
    """Returns the first frame of an image file as (height, width, channels) uint8.

    Args:
        data: the file's contents, or its path.
        channels: 1 (grey) or 3 (red, green, blue).
        decoding: decoding options; None: the defaults.

    Raises:
        BadImageError: the file is missing or no whole image, or its mode has no unique 8-bit form: 16-bit and floating
            point pixels without a pixel range.
        ValueError: `channels` is neither 1 nor 3.
    """
    return to_array(open_image(data, channels, decoding))


def open_image(
    data: bytes | str | os.PathLike[str],
    channels: int = 3,
    decoding: Decoding | None = None,
) -> Image.Image:
    """Returns the decoded Pillow image in mode L or RGB; arguments and errors are those of `decode_image`."""
    image_module = import_pillow()
    decoding = decoding or Decoding()
    if channels not in TARGETS:
        raise ValueError(f"images are read with 1 or 3 channels, got channels={channels}")
    try:
        with image_module.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            if decoding.exif:
                from PIL import ImageOps

                image = ImageOps.exif_transpose(image)
            if image.mode in WIDE and decoding.pixel_range is not None:
                image = _narrowed(image, decoding.pixel_range)
            elif image.mode in WIDE:
                raise BadImageError(
                    f"mode {image.mode!r} (pixels of more than 8 bits) has no one meaning in 8 bits: say which values "
                    "are black and white (--pixel-range 0,65535; pixel_range= in Python), or convert it first"
                )
            elif image.mode not in CONVERTED:
                raise BadImageError(f"mode {image.mode!r} is not turned into RGB without a colour profile: convert it")
            converted = image.convert(TARGETS[channels])  # decodes the pixels
            if decoding.white_transparency and channels == 3 and converted.info.get("transparency") is not None:
                white = image_module.new("RGBA", converted.size, (255, 255, 255, 255))
                converted = image_module.alpha_composite(white, converted.convert("RGBA")).convert("RGB")
            return converted
    except BadImageError:
        raise
    except FileNotFoundError:
        raise BadImageError("no such file") from None
    except IsADirectoryError:
        raise BadImageError("is a folder: name the images in it") from None
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and others
        raise BadImageError(f"not a readable image ({' '.join(str(error).split())[:120]})") from error


def _narrowed(image: Any, pixel_range: tuple[float, float]) -> Any:
    """Maps wide grey pixels to bytes, the range's ends to 0 and 255."""
    black, white = pixel_range
    scaled = (np.asarray(image, np.float64) - black) * (255 / (white - black))
    return import_pillow().fromarray(np.round(np.clip(np.nan_to_num(scaled), 0, 255)).astype(np.uint8))


def to_array(image: Image.Image) -> np.ndarray:
    """Returns an image of mode L or RGB as (height, width, channels) uint8."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def to_image(array: np.ndarray) -> Image.Image:
    """Returns (height, width, 1 or 3) uint8 as a Pillow image of mode L or RGB."""
    return import_pillow().fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def match_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Converts (height, width) or (height, width, 1, 3 or 4) uint8 to the given number of channels.

    Raises:
        BadImageError: the array has another shape or dtype.
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
