"""Image preprocessing of depth models: resizing to whole patches that nearly keeps the aspect ratio."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from vit_flax.preprocessing import torch_resize
from vit_flax.preprocessing.decode import Decoding, match_channels, open_image, to_array
from vit_flax.preprocessing.evaluation import normalise
from vit_flax.presets.preset import IMAGENET, INCEPTION

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_ON = ("do_resize", "do_rescale", "do_normalize")  # always done here
_FOLLOWED = ("do_convert_rgb", "do_reduce_labels")  # the second is of segmentation maps
_RESCALE = 1 / 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthPreprocessing:
    """The preprocessing of transformers' DPTImageProcessor; the defaults are Depth Anything's."""

    size: tuple[int, int] = (518, 518)  # (height, width) to resize to; keep_aspect_ratio keeps one of them
    multiple: int = 14  # both sides are rounded to multiples of it
    keep_aspect_ratio: bool = True
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    exif: bool = True  # apply the EXIF orientation, as transformers' pipeline does
    white_transparency: bool = False  # the colour that a file calls transparent becomes white

    @classmethod
    def from_huggingface(cls, values: Mapping[str, object], source: str) -> DepthPreprocessing:
        """Returns the preprocessing of a preprocessor_config.json.

        Raises:
            ValueError: the file is of another processor, or has a value that cannot be expressed.
        """
        told: dict[str, Any] = dict(values)
        kind = str(told.get("image_processor_type") or told.get("feature_extractor_type") or "DPTImageProcessor")
        if kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor") != "DPTImageProcessor":
            raise ValueError(f"{source}: processor {kind[:60]!r} is none of depth models: DPTImageProcessor is")
        wrong = [name for name in _ON if not told.get(name, True)]
        wrong += [name for name in told if name.startswith("do_") and name not in (*_ON, *_FOLLOWED) and told[name]]
        wrong += ["rescale_factor"] * (abs(told.get("rescale_factor", _RESCALE) - _RESCALE) > 1e-9)
        wrong += ["resample"] * (told.get("resample", 3) not in _FILTERS)
        if wrong:
            raise ValueError(f"{source}: {wrong[0]}={told.get(wrong[0])!r} is not followed here")
        size = told.get("size", 384)
        height, width = (size, size) if isinstance(size, int) else (size["height"], size["width"])
        return cls(
            size=(height, width),
            multiple=told.get("ensure_multiple_of") or 1,
            keep_aspect_ratio=bool(told.get("keep_aspect_ratio", False)),
            interpolation=_FILTERS[told.get("resample", 3)],
            mean=tuple(told.get("image_mean") or INCEPTION[0]),
            std=tuple(told.get("image_std") or INCEPTION[1]),
            white_transparency=bool(told.get("do_convert_rgb")),
        )

    def to_huggingface(self) -> dict[str, object]:
        """Returns the contents of a preprocessor_config.json."""
        return {
            "image_processor_type": "DPTImageProcessor",
            "size": {"height": self.size[0], "width": self.size[1]},
            "ensure_multiple_of": self.multiple,
            "keep_aspect_ratio": self.keep_aspect_ratio,
            "resample": next(number for number, name in _FILTERS.items() if name == self.interpolation),
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": self.white_transparency,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "rescale_factor": _RESCALE,
            "do_pad": False,
        }

    def open(self, image: np.ndarray | bytes | str | os.PathLike[str]) -> np.ndarray:
        """Returns an image as (height, width, channels) uint8; raises BadImageError where it cannot be read."""
        return open_pixels(image, self.mean, Decoding(self.exif, white_transparency=self.white_transparency))

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) that an image of that size is resized to."""
        across, down = self.size[1] / width, self.size[0] / height
        if self.keep_aspect_ratio:  # both sides by the scale closer to 1
            down = across = across if abs(1 - across) < abs(1 - down) else down
        return self._whole(down * height), self._whole(across * width)

    def _whole(self, side: float) -> int:
        rounded = round(side / self.multiple) * self.multiple
        return rounded or math.ceil(side / self.multiple) * self.multiple

    def prepare(self, pixels: np.ndarray) -> Float32[np.ndarray, "h w c"]:
        """Returns the resized and normalised image."""
        return normalise(
            torch_resize.resize(pixels, self.sides(*pixels.shape[:2]), self.interpolation), self.mean, self.std
        )


def open_pixels(
    image: np.ndarray | bytes | str | os.PathLike[str],
    mean: tuple[float, ...],
    decoding: Decoding,
) -> np.ndarray:
    """Returns an image as (height, width, len(mean)) uint8; raises BadImageError where it cannot be read."""
    channels = len(mean)
    is_array = isinstance(image, np.ndarray)
    return match_channels(image, channels) if is_array else to_array(open_image(image, channels, decoding))
