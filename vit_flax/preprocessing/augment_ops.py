"""Operations of RandAugment, AutoAugment and 3-Augment on Pillow images.

Reference: timm.data.auto_augment (the variants that grow with the magnitude); arXiv 1805.09501, 1909.13719, 2204.07118.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

MAX_LEVEL = 10.0


class Geometry(NamedTuple):
    """Parameters of geometric operations."""

    fill: int | tuple[int, ...]  # colour of pixels beyond the border
    interpolation: str  # 'bilinear' or 'bicubic'


Operation = Callable[["Image.Image", float, random.Random, Geometry], "Image.Image"]


def _signed(value: float, rng: random.Random) -> float:
    return -value if rng.random() > 0.5 else value


def _affine(image: Image.Image, matrix: tuple[float, ...], geometry: Geometry) -> Image.Image:
    from PIL import Image

    method = Image.Resampling[geometry.interpolation.upper()]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, method, fillcolor=geometry.fill)


def _shear_x(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
    return _affine(image, (1, _signed(level / MAX_LEVEL * 0.3, rng), 0, 0, 1, 0), geometry)


def _shear_y(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
    return _affine(image, (1, 0, 0, _signed(level / MAX_LEVEL * 0.3, rng), 1, 0), geometry)


def _translate_x(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
    return _affine(image, (1, 0, _signed(level / MAX_LEVEL * 0.45, rng) * image.width, 0, 1, 0), geometry)


def _translate_y(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, _signed(level / MAX_LEVEL * 0.45, rng) * image.height), geometry)


def _rotate(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
    from PIL import Image

    method = Image.Resampling[geometry.interpolation.upper()]
    return image.rotate(_signed(level / MAX_LEVEL * 30.0, rng), method, fillcolor=geometry.fill)


def _enhance(name: str, increasing: bool) -> Operation:
    """Returns the operation that changes colour, contrast, brightness or sharpness, as named in PIL.ImageEnhance."""

    def operation(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
        from PIL import ImageEnhance

        share = level / MAX_LEVEL
        factor = max(0.1, 1.0 + _signed(share * 0.9, rng)) if increasing else share * 1.8 + 0.1
        return getattr(ImageEnhance, name)(image).enhance(factor)

    return operation


def _imageops(name: str) -> Operation:
    def operation(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
        from PIL import ImageOps

        return getattr(ImageOps, name)(image)

    return operation


def _posterize(bits_of_level: Callable[[float], int]) -> Operation:
    """Returns the operation that keeps the highest of the 8 bits; 0 bits, which Pillow's refuses, are black."""

    def operation(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
        lost = 8 - bits_of_level(level)
        return image.point([value >> lost << lost for value in range(256)] * len(image.getbands()))

    return operation


def _solarize(increasing: bool) -> Operation:
    def operation(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
        from PIL import ImageOps

        threshold = min(256, int(level / MAX_LEVEL * 256))
        return ImageOps.solarize(image, 256 - threshold if increasing else threshold)

    return operation


def _solarize_add(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
    added = min(128, int(level / MAX_LEVEL * 110))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _desaturate(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
    from PIL import ImageEnhance

    return ImageEnhance.Color(image).enhance(1.0 - min(1.0, 0.5 + level / MAX_LEVEL * 0.5))


def _blur(image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(radius=rng.uniform(0.1, 2.0 * level / MAX_LEVEL)))


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": _imageops("autocontrast"),
    "Equalize": _imageops("equalize"),
    "Invert": _imageops("invert"),
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize(lambda level: 4 - int(level / MAX_LEVEL * 4)),
    "PosterizeOriginal": _posterize(lambda level: 4 + int(level / MAX_LEVEL * 4)),
    "Solarize": _solarize(increasing=False),
    "SolarizeIncreasing": _solarize(increasing=True),
    "SolarizeAdd": _solarize_add,
    "Color": _enhance("Color", increasing=False),
    "ColorIncreasing": _enhance("Color", increasing=True),
    "Contrast": _enhance("Contrast", increasing=False),
    "ContrastIncreasing": _enhance("Contrast", increasing=True),
    "BrightnessIncreasing": _enhance("Brightness", increasing=True),
    "Sharpness": _enhance("Sharpness", increasing=False),
    "SharpnessIncreasing": _enhance("Sharpness", increasing=True),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
    "Desaturate": _desaturate,
    "GaussianBlurRand": _blur,
}

RAND_AUGMENT = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
    "TranslateXRel", "TranslateYRel",
)  # fmt: skip

# The published ImageNet policy: an image gets one pair of (operation, probability, level).
_AUTO_AUGMENT = """
    PosterizeOriginal .4 8 Rotate .6 9          Solarize .6 5 AutoContrast .6 5     Equalize .8 8 Equalize .6 3
    PosterizeOriginal .6 7 PosterizeOriginal .6 6  Equalize .4 7 Solarize .2 4      Equalize .4 4 Rotate .8 8
    Solarize .6 3 Equalize .6 7                 PosterizeOriginal .8 5 Equalize 1 2 Rotate .2 3 Solarize .6 8
    Equalize .6 8 PosterizeOriginal .4 6        Rotate .8 8 Color .4 0              Rotate .4 9 Equalize .6 2
    Equalize 0 7 Equalize .8 8                  Invert .6 4 Equalize 1 8            Color .6 4 Contrast 1 8
    Rotate .8 8 Color 1 2                       Color .8 8 Solarize .8 7            Sharpness .4 7 Invert .6 8
    ShearX .6 5 Equalize 1 9                    Color .4 0 Equalize .6 3            Equalize .4 7 Solarize .2 4
    Solarize .6 5 AutoContrast .6 5             Invert .6 4 Equalize 1 8            Color .6 4 Contrast 1 8
    Equalize .8 8 Equalize .6 3
"""
_WORDS = _AUTO_AUGMENT.split()
_STEPS = [(_WORDS[i], float(_WORDS[i + 1]), float(_WORDS[i + 2])) for i in range(0, len(_WORDS), 3)]
Policy = tuple[tuple[tuple[str, float, float], ...], ...]
AUTO_AUGMENT: Policy = tuple((_STEPS[i], _STEPS[i + 1]) for i in range(0, len(_STEPS), 2))
THREE_AUGMENT: Policy = ((("Solarize", 1.0, 5.0),), (("Desaturate", 1.0, 10.0),), (("GaussianBlurRand", 1.0, 10.0),))


def apply_operation(name: str, image: Image.Image, level: float, rng: random.Random, geometry: Geometry) -> Image.Image:
    """Returns the image after one operation at a level of 0..10."""
    return OPERATIONS[name](image, max(0.0, min(level, MAX_LEVEL)), rng, geometry)


def rand_augment(
    image: Image.Image, rng: random.Random, geometry: Geometry, magnitude: float, magnitude_std: float, num_ops: int
) -> Image.Image:
    """Applies `num_ops` operations drawn with replacement, each with probability 1/2."""
    for name in rng.choices(RAND_AUGMENT, k=num_ops):
        if rng.random() < 0.5:
            image = apply_operation(name, image, rng.gauss(magnitude, magnitude_std), rng, geometry)
    return image


def follow_policy(image: Image.Image, rng: random.Random, geometry: Geometry, policy: Policy) -> Image.Image:
    """Applies a random row of the policy, each operation with its probability."""
    for name, probability, level in rng.choice(policy):
        if rng.random() < probability:
            image = apply_operation(name, image, level, rng, geometry)
    return image
