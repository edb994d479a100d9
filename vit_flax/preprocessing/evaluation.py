"""Image preprocessing and class names, as one value that travels with the weights."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from vit_flax.config.field_types import check_types
from vit_flax.preprocessing import torch_resize
from vit_flax.preprocessing.decode import Decoding, import_pillow, match_channels, open_image, to_array, to_image
from vit_flax.preprocessing.naflex import naflex_size

if TYPE_CHECKING:
    from PIL import Image

    from vit_flax.presets import Preset

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
PAD = "pad"
CROP_MODES = ("center", "squash", "border", PAD, "none")
PATCHES = "patches"  # the crop_mode of NaFlex models, set by their processor alone
RESIZERS = ("pillow", "torchvision", "torchvision_floats")
PREPROCESSING_FILE = "preprocessing.json"  # this library's file beside the weights
_ALWAYS = ("mean", "std", "crop_pct", "interpolation", "crop_mode", "class_names")  # written even at their defaults
_PAIRS = ("image_size", "mean", "std", "resize_size", "fill", "pixel_range", "class_names", "class_descriptions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Turns an image into a model's input as the owner of the weights does, and names the model's classes.

    'center': resizes the shorter side to image_size / crop_pct, then takes a centre crop.
    'squash': resizes both sides to image_size / crop_pct and ignores the aspect ratio, then takes a centre crop.
    'border': resizes the longer side to image_size / crop_pct, and pads with `fill`.
    'pad': resizes the longer side, and pads normalised pixels with zeros below and on the right; SAM.
    'none': resizes nothing.
    'patches': resizes to at most `max_num_patches` whole patches, nearly keeping the aspect ratio.

    Raises:
        ValueError: a value is out of range; the message names it.

    Reference: timm.data.transforms_factory.transforms_imagenet_eval and torchvision's Resize and CenterCrop on Pillow
    images, to the last bit; with 'torchvision' those on tensors, as the processors of transformers call them.
    """

    # (height, width) of the result; None: variable with a resize_size or 'none' and 'patches', otherwise the model's
    image_size: tuple[int, int] | None
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # per channel, of pixels in 0..1
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    resize_size: tuple[int, int] | None = None  # (height, width) to resize to; None: image_size divided by crop_pct
    patch_size: int | None = None  # of 'patches'
    max_num_patches: int | None = None  # of 'patches'
    resizer: str = "pillow"  # 'torchvision_floats': pixels are scaled to 0..1 before resizing, not after
    fill: tuple[int, ...] | None = None  # colour of 'border'; None: the mean
    exif: bool = False  # apply the EXIF orientation
    pixel_range: tuple[float, float] | None = None  # black and white of pixels wider than 8 bits; None: refused
    white_transparency: bool = False  # paint a file's transparent colour white
    class_names: tuple[str, ...] | None = None
    class_descriptions: tuple[str, ...] | None = None  # human-readable names, where class_names are codes

    def __post_init__(self) -> None:
        """Checks every value."""
        for name in _PAIRS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        check_types(self)
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean and std must have one value a channel, got {self.mean} and {self.std}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be positive, got {self.std}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be above 0 and at most 1, got {self.crop_pct}")
        for name, known in (("interpolation", INTERPOLATIONS), ("crop_mode", (*CROP_MODES, PATCHES)),
                            ("resizer", RESIZERS)):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("image_size", "resize_size"):
            sides = getattr(self, name)
            if sides is not None and not (len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)):
                raise ValueError(f"{name} must be two positive whole numbers, got {sides}")
        for name in ("patch_size", "max_num_patches"):
            count = getattr(self, name)
            if (type(count) is not int or count < 1) if self.crop_mode == PATCHES else count is not None:
                raise ValueError(f"{name} needs crop_mode={PATCHES!r}, and is 1 or more with it, got {count!r}")
        if self.crop_mode == PATCHES and (self.image_size or self.resize_size):
            raise ValueError(
                f"images of crop_mode={PATCHES!r} have sizes of their own: image_size and resize_size are None"
            )
        sides, most = self.resized_to, self.image_size
        if self.crop_mode == PAD and sides and most and (sides[0] > most[0] or sides[1] > most[1]):
            raise ValueError(
                f"crop_mode={PAD!r} cuts nothing: images resized to {sides[0]}x{sides[1]} do not fit into "
                f"{most[0]}x{most[1]}"
            )
        if self.pixel_range is not None and not self.pixel_range[0] < self.pixel_range[-1]:
            raise ValueError(f"pixel_range must be black and white, the smaller first, got {self.pixel_range}")
        if self.resizer != "pillow" and self.interpolation in ("box", "hamming"):
            raise ValueError(f"torchvision does not resize tensors with interpolation {self.interpolation!r}")

    @classmethod
    def from_preset(cls, preset: Preset, image_size: tuple[int, int] | None = None) -> Preprocessing:
        """Returns the preprocessing of a preset's published weights; mean and std of 0.5 where it has none."""
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

    @property
    def decoding(self) -> Decoding:
        """The options of decoding image files."""
        return Decoding(self.exif, self.pixel_range, self.white_transparency)

    @property
    def resized_to(self) -> tuple[int, int] | None:
        """(height, width) of the resize by the rule of `crop_mode`; None: no resize to a fixed size."""
        if self.crop_mode in ("none", PATCHES) or self.resize_size or self.image_size is None:
            return None if self.crop_mode in ("none", PATCHES) else self.resize_size
        rows, columns = (math.floor(side / self.crop_pct) for side in self.image_size)
        return rows, columns

    def replace(self, **changes: object) -> Preprocessing:
        """Returns a copy with changed fields."""
        return dataclasses.replace(self, **changes)

    @property
    def varies(self) -> bool:
        """Whether the result's size varies with the image."""
        return self.image_size is None and (self.resize_size is not None or self.crop_mode in ("none", PATCHES))

    def of_one_size(self, image_size: tuple[int, int], crop_mode: str = "center") -> Preprocessing:
        """Returns the same preprocessing for results of one size, without a resize_size."""
        changes = {"resize_size": None, "patch_size": None, "max_num_patches": None}
        return self.replace(image_size=image_size, crop_mode=crop_mode, **changes)

    def for_model(self, image_size: tuple[int, int], channels: int) -> Preprocessing:
        """Returns the preprocessing for a model of another size, with resize_size scaled in proportion.

        A single mean or std is repeated for all channels.

        Raises:
            ValueError: the numbers of channels differ.
        """
        changes: dict[str, Any] = {}
        if self.image_size != tuple(image_size) and not self.varies:
            changes["image_size"] = tuple(image_size)
            if self.resize_size and self.image_size:
                pairs = zip(self.resize_size, image_size, self.image_size, strict=True)
                changes["resize_size"] = tuple(round(side * new / old) for side, new, old in pairs)
        for name in ("mean", "std"):
            found = getattr(self, name)
            if len(found) == 1:
                changes[name] = found * channels
            elif len(found) != channels:
                raise ValueError(f"{name} has {len(found)} numbers, the model's images have {channels} channels")
        return self.replace(**changes) if changes else self

    def to_dict(self) -> dict[str, object]:
        """Returns the value as JSON types."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default or field.name in _ALWAYS
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Preprocessing:
        """Returns the value of a preprocessing.json.

        Raises:
            ValueError: a field does not exist, or its value does not fit.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"{PREPROCESSING_FILE}: unknown field {unknown[0]!r}")
        given = {name: value for name, value in values.items() if value is not None}
        try:
            return cls(**{"image_size": None, **given})
        except TypeError as error:
            raise ValueError(f"{PREPROCESSING_FILE}: a value is of the wrong type: {error}") from error

    def __call__(self, image: np.ndarray | bytes | str | os.PathLike[str]) -> Float32[np.ndarray, "h w c"]:
        """Returns the preprocessed image of a uint8 array, a file's contents or a path.

        Raises:
            BadImageError: the image cannot be read.
        """
        if self._pads:
            return self._fill_up(self._unpadded()(image), 0)
        if self.resizer == "torchvision_floats":
            floats = match_channels(self._opened(image), self.channels) * np.float32(1 / 255)
            cut = self._cut(floats)
            return (cut - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return normalise(self.crop(image), self.mean, self.std)

    def crop(self, image: np.ndarray | bytes | str | os.PathLike[str]) -> np.ndarray:
        """Returns the resized and cropped image before normalisation, as uint8; in 'pad' with the mean as padding."""
        if isinstance(image, np.ndarray) and self.crop_pct == 1 and not self.resize_size:
            image = match_channels(image, self.channels)
            if image.shape[:2] == self.image_size:
                return image
        if self._pads:
            return self._fill_up(self._unpadded().crop(image), self.fill_colour())
        if self.resizer != "pillow":
            return self._cut(self._opened(image))
        if isinstance(image, np.ndarray):
            opened = to_image(match_channels(image, self.channels))
        else:
            opened = open_image(image, self.channels, self.decoding)
        resized = self._resize(opened)
        return to_array(centre_crop(resized, self.image_size, self.fill_colour()) if self.image_size else resized)

    def unit_pixels(self, image: np.ndarray | bytes | str | os.PathLike[str]) -> Float32[np.ndarray, "h w c"]:
        """Returns the image before normalisation, in 0..1; in 'pad' padded with the mean, which uint8 cannot hold."""
        inside = self._unpadded() if self._pads else self
        pixels = np.divide(inside.crop(image), np.float32(255), dtype=np.float32)
        return self._fill_up(pixels, np.asarray(self.mean, np.float32)) if self._pads else pixels

    @property
    def _pads(self) -> bool:
        return self.crop_mode == PAD and self.image_size is not None

    def _unpadded(self) -> Preprocessing:
        """Returns the same preprocessing without the padding of 'pad'."""
        return self.replace(image_size=None, resize_size=self.resized_to)

    def _fill_up(self, image: np.ndarray, fill: Any) -> np.ndarray:
        """Returns the image padded below and on the right to the model's size."""
        assert self.image_size is not None
        filled = np.empty((*self.image_size, image.shape[-1]), image.dtype)
        filled[:] = fill
        filled[: image.shape[0], : image.shape[1]] = image
        return filled

    def _opened(self, image: np.ndarray | bytes | str | os.PathLike[str]) -> np.ndarray:
        if isinstance(image, np.ndarray):
            return match_channels(image, self.channels)
        return to_array(open_image(image, self.channels, self.decoding))

    def _cut(self, image: np.ndarray) -> np.ndarray:
        """Resizes and crops an array as torchvision does a tensor."""
        sides = self.sides(image.shape[0], image.shape[1])
        if image.shape[:2] != sides:
            image = torch_resize.resize(image, sides, self.interpolation)
        return crop_array(image, self.image_size) if self.image_size else image

    def fill_colour(self) -> int | tuple[int, ...]:
        """Returns the colour of the padding of Pillow images: a grey level, or a tuple of channels."""
        if self.crop_mode not in ("border", PAD):
            return 0
        mean = tuple(min(255, max(0, round(255 * value))) for value in self.mean)
        fill = (self.fill or mean) if self.crop_mode == "border" else mean
        return fill[0] if len(fill) == 1 else fill

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) that an image of that size is resized to."""
        if self.patch_size is not None and self.max_num_patches is not None:
            return naflex_size(height, width, self.patch_size, self.max_num_patches)
        sides = self.resized_to
        if sides is None:
            return height, width
        if self.crop_mode == "squash":
            return sides
        if self.crop_mode == PAD:  # as SAM's processor rounds
            scale = min(sides[0] / height, sides[1] / width)
            return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        if self.crop_mode == "border":
            ratio = max(height / sides[0], width / sides[1])
        elif sides[0] == sides[1]:  # torchvision truncates the longer side
            short, side = min(height, width), sides[0]
            return (side if height == short else int(side * height / width),
                    side if width == short else int(side * width / height))  # fmt: skip
        else:  # timm, for other shapes, rounds both
            ratio = min(height / sides[0], width / sides[1])
        return round(height / ratio), round(width / ratio)

    def _resize(self, image: Image.Image) -> Image.Image:
        sides = self.sides(image.height, image.width)
        if (image.height, image.width) == sides:
            return image
        method = getattr(import_pillow().Resampling, self.interpolation.upper())
        return image.resize((sides[1], sides[0]), method)


def centre_crop(image: Image.Image, size: tuple[int, int], fill: object = 0) -> Image.Image:
    """Returns the centre of an image, padded with `fill` (black) where it is smaller."""
    height, width = size
    # as torchvision: pads first, an odd row below and an odd column on the right
    left, top = max(width - image.width, 0) // 2, max(height - image.height, 0) // 2
    if image.width < width or image.height < height:
        padded = import_pillow().new(image.mode, (max(image.width, width), max(image.height, height)), fill)
        padded.paste(image, (left, top))
        image = padded
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))


def crop_array(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the centre of an array (H, W, C), zero-padded; offsets round down, as in transformers' processors."""
    missing = [max(new - old, 0) for old, new in zip(image.shape[:2], size, strict=True)]
    if any(missing):
        image = np.pad(image, [*((gap // 2, (gap + 1) // 2) for gap in missing), (0, 0)])
    top, left = ((old - new) // 2 for old, new in zip(image.shape[:2], size, strict=True))
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])


def normalise(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Float32[np.ndarray, "... c"]:
    """Computes (pixel / 255 - mean) / std of uint8 pixels, every step in float32 as torch does."""
    result = np.divide(image, np.float32(255), dtype=np.float32)
    result -= np.asarray(mean, np.float32)
    result /= np.asarray(std, np.float32)
    return result
