import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vit_flax.preprocessing.decode import BadImageError, Decoding, decode_image, match_channels

COLOURS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def _png(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_of_eight_bits_are_converted_as_pillow_does(mode: str, channels: int) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    data = _png(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")).reshape(4, 6, channels)
    np.testing.assert_array_equal(decode_image(data, channels), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_wider_pixels_are_refused(dtype: type) -> None:
    data = _png(Image.fromarray(np.full((4, 6), 300, dtype)), "TIFF")
    with pytest.raises(BadImageError, match="pixels of more than 8 bits"):
        decode_image(data)


@pytest.mark.parametrize(("dtype", "black", "white"), [(np.uint16, 0, 65535), (np.int32, -10, 10), (np.float32, 0, 1)])
def test_a_range_brings_wider_pixels_to_bytes(dtype: type, black: float, white: float) -> None:
    values = np.linspace(black, white, 24).reshape(4, 6).astype(dtype)
    data = _png(Image.fromarray(values), "TIFF")
    expected = np.round((values.astype(np.float64) - black) / (white - black) * 255)
    found = decode_image(data, 3, Decoding(pixel_range=(black, white)))
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, -1))
    clipped = decode_image(data, 1, Decoding(pixel_range=(black, (black + white) / 2)))
    assert (clipped.min(), clipped.max()) == (0, 255)


def test_exif_orientation_is_followed_where_it_is_asked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise to be seen
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(file.getvalue()), COLOURS)
    np.testing.assert_array_equal(decode_image(file.getvalue(), 3, Decoding(exif=True)), np.rot90(COLOURS, -1))


def test_lab_is_refused_for_its_own_reason() -> None:
    data = _png(Image.frombytes("LAB", (6, 4), COLOURS.tobytes()), "TIFF")
    with pytest.raises(BadImageError, match="'LAB' is not turned into RGB without a colour profile"):
        decode_image(data)


def test_damaged_files_are_refused() -> None:
    data = _png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    for broken in (b"", b"not an image", data[:20], data[: len(data) // 2], b"\x89PNG\r\n\x1a\n" + b"\0" * 50):
        with pytest.raises(BadImageError, match="not a readable image"):
            decode_image(broken)
    with pytest.raises(BadImageError, match="no such file"):
        decode_image("nowhere.png")


def test_huge_images_are_refused_before_they_are_decoded() -> None:
    data = _png(Image.new("1", (8, 8)))
    chunk = b"IHDR" + struct.pack(">II", 20_000, 20_000) + data[24:29]
    with pytest.raises(BadImageError, match="400000000 pixels"):
        decode_image(data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])


def test_channels_of_arrays() -> None:
    assert match_channels(COLOURS, 3) is COLOURS
    assert match_channels(COLOURS, 1).shape == (4, 6, 1)
    assert match_channels(COLOURS[..., 0], 3).shape == (4, 6, 3)
    alpha = np.concatenate([COLOURS, COLOURS[..., :1]], -1)
    np.testing.assert_array_equal(match_channels(alpha, 3), COLOURS)
    for wrong in (COLOURS.astype(np.float32), COLOURS[..., :2], COLOURS[None]):
        with pytest.raises(BadImageError, match="an image must be"):
            match_channels(wrong, 3)
