"""Augmentation of single images: random resized crop, flip, shift, colour jitter."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np

from vit_flax.preprocessing.augment_ops import AUTO_AUGMENT, THREE_AUGMENT, Geometry, follow_policy, rand_augment
from vit_flax.preprocessing.decode import import_pillow, match_channels, to_array, to_image
from vit_flax.train.config import AugmentConfig

if TYPE_CHECKING:
    from PIL import Image

ATTEMPTS = 10  # at a crop of the area and shape drawn, before the centre is taken


class TrainTransform:
    """Augments an image and resizes it to the model's input, still uint8.

    The result follows from the image and the random numbers alone.
    """

    def __init__(
        self, config: AugmentConfig, image_size: tuple[int, int], channels: int, fill: tuple[int, ...]
    ) -> None:
        self.config, self.image_size, self.channels = config, image_size, channels
        self.fill: int | tuple[int, ...] = fill[0] if channels == 1 else fill  # the mean colour, in 0..255

    def __call__(self, image: np.ndarray, rng: random.Random) -> np.ndarray:
        """Returns the (height, width, channels) uint8 image for training."""
        config = self.config
        image = match_channels(image, self.channels)
        interpolation = config.interpolation
        if interpolation == "random":
            interpolation = rng.choice(("bilinear", "bicubic"))
        box = None
        if config.random_resized_crop:
            box = draw_crop(image.shape[0], image.shape[1], config.random_resized_crop, config.aspect_ratio, rng)
        coloured = config.auto != "none" or config.color_jitter
        if box or coloured or image.shape[:2] != self.image_size:
            opened = resize_crop(to_image(image), box, self.image_size, interpolation)
            image = to_array(self._colours(opened, rng, Geometry(self.fill, interpolation)) if coloured else opened)
        if config.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        if config.shift_pixels:
            reach = 2 * config.shift_pixels + 1
            down, right = (int(rng.random() * reach) - config.shift_pixels for _ in range(2))
            image = shift(image, down, right)
        return image

    def _colours(self, image: Image.Image, rng: random.Random, geometry: Geometry) -> Image.Image:
        config = self.config
        if config.auto == "randaugment":
            image = rand_augment(image, rng, geometry, config.magnitude, config.magnitude_std, config.num_ops)
        elif config.auto == "autoaugment":
            image = follow_policy(image, rng, geometry, AUTO_AUGMENT)
        elif config.auto == "three_augment":
            image = follow_policy(image, rng, geometry, THREE_AUGMENT)
        return color_jitter(image, config.color_jitter, rng) if config.color_jitter else image


def draw_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of a random crop.

    Args:
        height: of the image.
        width: of the image.
        scale: bounds of the crop's share of the area.
        ratio: bounds of its width over its height, drawn evenly on a logarithmic scale.
        rng: where the numbers come from.

    Reference: torchvision.transforms.RandomResizedCrop.get_params.
    """
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.random() * (height - crop_height + 1))
            left = int(rng.random() * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = width / height
    if aspect < ratio[0]:
        crop_width, crop_height = width, round(width / ratio[0])
    elif aspect > ratio[1]:
        crop_width, crop_height = round(height * ratio[1]), height
    else:
        crop_width, crop_height = width, height
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resize_crop(
    image: Image.Image, box: tuple[int, int, int, int] | None, size: tuple[int, int], interpolation: str
) -> Image.Image:
    """Returns the box (top, left, height, width), or the whole image, resized to (height, width)."""
    if box:  # not resize(box=...), which looks at pixels around the box as well
        top, left, height, width = box
        image = image.crop((left, top, left + width, top + height))
    if (image.height, image.width) == size:
        return image
    return image.resize((size[1], size[0]), import_pillow().Resampling[interpolation.upper()])


def shift(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Translates an image by so many pixels, padding with zeros."""
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    if abs(down) < height and abs(right) < width:
        moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
            max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
        ]
    return moved


def color_jitter(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """Jitters brightness, contrast and saturation of an image in random order.

    Reference: torchvision.transforms.ColorJitter.
    """
    from PIL import ImageEnhance

    for name in rng.sample(("Brightness", "Contrast", "Color"), k=3):
        image = getattr(ImageEnhance, name)(image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image
