"""What evaluation does to an image: resize, crop, normalise."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from vit_flax.preprocessing.decode import import_pillow, match_channels, open_image, to_array, to_image

if TYPE_CHECKING:
    from PIL import Image

    from vit_flax.presets import Preset

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash")
PREPROCESSING_FILE = "preprocessing.json"  # beside the weights that a training run leaves


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Turns an image into a model's input as timm's evaluation does, to the last bit.

    'center': the shorter side is resized to the model's size divided by `crop_pct`, and the centre is cut out.
    'squash': both sides are resized to that without regard to the aspect ratio.

    Raises:
        ValueError: a value is out of range; the message names it.

    Reference: timm.data.transforms_factory.transforms_imagenet_eval; torchvision.transforms.Resize and CenterCrop on
    Pillow images.
    """

    image_size: tuple[int, int]  # (height, width)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # one a channel, of pixels in 0..1
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        """Checks every value."""
        for name in ("image_size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError(f"mean and std must both have 1 or 3 values, got {self.mean} and {self.std}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be positive, got {self.std}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be above 0 and at most 1, got {self.crop_pct}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"crop_mode must be one of {', '.join(CROP_MODES)}, got {self.crop_mode!r}")

    @classmethod
    def from_preset(cls, preset: Preset, image_size: tuple[int, int] | None = None) -> EvalTransform:
        """Returns the transform of a preset's published weights; without any, mean and std of 0.5."""
        channels = preset.config.in_chans
        return cls(
            image_size=image_size or preset.config.image_size,
            mean=preset.mean or (0.5,) * channels,
            std=preset.std or (0.5,) * channels,
            crop_pct=preset.crop_pct,
            interpolation=preset.interpolation,
            crop_mode=preset.crop_mode,
        )

    @property
    def channels(self) -> int:
        """Channels of the result."""
        return len(self.mean)

    def __call__(self, image: np.ndarray | bytes | str | os.PathLike[str]) -> Float32[np.ndarray, "h w c"]:
        """Returns the normalised image of a uint8 array, a file's contents or a path.

        Raises:
            BadImageError: it cannot be read.
        """
        return normalise(self.crop(image), self.mean, self.std)

    def crop(self, image: np.ndarray | bytes | str | os.PathLike[str]) -> np.ndarray:
        """Returns the image before normalising, uint8."""
        if isinstance(image, np.ndarray):
            image = match_channels(image, self.channels)
            height, width = self.image_size
            if self.crop_pct == 1 and image.shape[:2] == (height, width):
                return image
            opened = to_image(image)
        else:
            opened = open_image(image, self.channels)
        return to_array(centre_crop(self._resize(opened), self.image_size))

    def _resize(self, image: Image.Image) -> Image.Image:
        sides = tuple(math.floor(side / self.crop_pct) for side in self.image_size)
        if self.crop_mode == "center":
            height, width = image.height, image.width
            if sides[0] == sides[1]:  # torchvision cuts the longer side's fraction off
                short, side = min(height, width), sides[0]
                sides = (side if height == short else int(side * height / width),
                         side if width == short else int(side * width / height))  # fmt: skip
            else:  # and timm, for other shapes, rounds both
                ratio = min(height / sides[0], width / sides[1])
                sides = round(height / ratio), round(width / ratio)
        if (image.height, image.width) == sides:
            return image
        method = getattr(import_pillow().Resampling, self.interpolation.upper())
        return image.resize((sides[1], sides[0]), method)


def centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Returns the centre of an image, padded with black where it is smaller."""
    height, width = size
    # as torchvision: what is missing is added first, the odd row below and the odd column to the right
    left, top = max(width - image.width, 0) // 2, max(height - image.height, 0) // 2
    if image.width < width or image.height < height:
        padded = import_pillow().new(image.mode, (max(image.width, width), max(image.height, height)))
        padded.paste(image, (left, top))
        image = padded
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))


def normalise(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Float32[np.ndarray, "... c"]:
    """Computes (pixel / 255 - mean) / std of uint8 pixels, every step in float32 as torch does."""
    result = np.divide(image, np.float32(255), dtype=np.float32)
    result -= np.asarray(mean, np.float32)
    result /= np.asarray(std, np.float32)
    return result
