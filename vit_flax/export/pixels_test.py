"""Preprocessing of raw pixels in a program, against that on the host."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from vit_flax.export.pixels import prepare_pixels
from vit_flax.parity.tolerances import FLOAT32_ROUNDING
from vit_flax.preprocessing import pillow_resize
from vit_flax.preprocessing.evaluation import Preprocessing

RNG = np.random.default_rng(0)
CASES = [
    ("pillow", "bicubic", "center"), ("pillow", "lanczos", "squash"), ("pillow", "hamming", "border"),
    ("pillow", "nearest", "center"), ("pillow", "box", "none"), ("torchvision", "bicubic", "center"),
    ("torchvision", "nearest", "squash"), ("torchvision", "bilinear", "pad"),
    ("torchvision_floats", "bilinear", "center"),
]  # fmt: skip


@pytest.mark.parametrize(("resizer", "interpolation", "crop_mode"), CASES)
def test_is_what_preprocessing_does(resizer: str, interpolation: str, crop_mode: str) -> None:
    for raw, size in itertools.product(((41, 53), (97, 30)), ((32, 32), (24, 36))):
        value = Preprocessing(
            image_size=size, resizer=resizer, interpolation=interpolation, crop_mode=crop_mode,
            crop_pct=1.0 if crop_mode == "pad" else 0.9,
            mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25),
        )  # fmt: skip
        images = RNG.integers(0, 256, (2, *raw, 3)).astype(np.uint8)
        found = np.asarray(prepare_pixels(value, raw, 3)(jnp.asarray(images)))
        # bytes are equal to the bit, and two divisions round values of 3 at most; a grey level would be 0.013 at least
        np.testing.assert_allclose(found, np.stack([value(image) for image in images]), atol=3 * FLOAT32_ROUNDING)


def test_one_mean_counts_for_all_channels_and_grey_is_grey() -> None:
    value = Preprocessing(image_size=(8, 8), mean=(0.5,), std=(0.25,))
    images = RNG.integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    np.testing.assert_allclose(
        prepare_pixels(value, (8, 8), 1)(jnp.asarray(images)), (images / 255 - 0.5) / 0.25, atol=FLOAT32_ROUNDING
    )


def test_a_pillow_that_resizes_otherwise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    support, function = pillow_resize._FILTERS["bicubic"]
    monkeypatch.setitem(pillow_resize._FILTERS, "bicubic", (support, lambda x: function(x * 0.9)))
    with pytest.raises(ValueError, match="this version of Pillow resizes bicubic otherwise"):
        prepare_pixels(Preprocessing(image_size=(8, 8)), (20, 30), 3)
