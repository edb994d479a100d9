"""Image processors of transformers, timm's pretrained_cfg and open_clip's preprocess_cfg against their owners."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from parity_tests.peers import import_timm, import_transformers
from vit_flax.parity.tolerances import FLOAT32_ROUNDING
from vit_flax.preprocessing import torch_resize
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.preprocessing.huggingface import read_processor, write_processor
from vit_flax.preprocessing.timm_config import read_open_clip, read_timm, write_timm
from vit_flax.presets.preset import CLIP

transformers = import_transformers()
import_timm()

PHOTO = load_sample_image("china.jpg")
# sizes that round in every direction, standing and lying, smaller than the crop, and as large as it
PHOTOS = [PHOTO[:333, :251], PHOTO.transpose(1, 0, 2)[:401, :300], PHOTO[:24, :61], PHOTO[:32, :32]]

PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("vit", {"image_processor_type": "ViTImageProcessor"}),
    ("vit", {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 32, "width": 48}, "resample": 3}),
    ("vit", {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "image_mean": [0.1, 0.2, 0.3]}),
    ("vit", {"size": 40, "do_normalize": False, "resample": 0}),
    ("vit", {"size": [40, 32], "do_rescale": False, "image_mean": [100, 110, 120], "image_std": [50, 60, 70]}),
    (
        "vit",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_center_crop": None,
            "rescale_factor": 1 / 127.5,
            "resample": 1,
        },
    ),
    ("deit", {"image_processor_type": "DeiTImageProcessor", "size": 37, "crop_size": 32}),
    ("deit", {"feature_extractor_type": "DeiTFeatureExtractor"}),
    ("beit", {"image_processor_type": "BeitImageProcessor", "do_reduce_labels": True, "size": 32}),
    ("beit", {"image_processor_type": "BeitImageProcessor", "do_center_crop": True, "size": 40, "crop_size": 33}),
    ("dinov2", {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 37}, "crop_size": 32}),
    ("dinov2", {"image_processor_type": "BitImageProcessor", "do_resize": False, "crop_size": 37}),
    ("clip", {"image_processor_type": "CLIPImageProcessor", "size": 33, "crop_size": {"height": 32, "width": 28}}),
    ("clip", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "do_convert_rgb": True}),
    ("clip", {"size": {"height": 32, "width": 40}, "do_center_crop": False}),
    ("siglip", {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}),
    ("siglip", {"do_rescale": False}),
    ("dinov3_vit", {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 32, "width": 32}}),
    ("dinov3_vit", {"do_center_crop": True, "crop_size": 40, "size": {"shortest_edge": 44}, "resample": 3}),
    ("ijepa", {}),
    ("chinese_clip", {"image_processor_type": "ChineseCLIPImageProcessor", "size": {"shortest_edge": 33}}),
    ("owlvit", {"image_processor_type": "OwlViTImageProcessor", "size": {"height": 32, "width": 40}}),
    ("sam", {"size": {"longest_edge": 37}, "pad_size": {"height": 37, "width": 37}}),
    (
        "sam_hq",
        {
            "image_processor_type": "SamImageProcessor",
            "size": {"longest_edge": 32},
            "pad_size": {"height": 48, "width": 40},
            "mask_size": {"longest_edge": 8},
            "resample": 3,
            "do_convert_rgb": False,
            "image_mean": [0.1, 0.2, 0.3],
        },
    ),
    ("sam", {"image_processor_type": "SamImageProcessorFast", "size": {"longest_edge": 40}, "do_pad": False}),
    ("sam3", {"image_processor_type": "Sam3ImageProcessorFast", "size": {"height": 42, "width": 28}}),
    ("sam3_video", {"size": {"height": 42, "width": 42}}),
    ("sam2", {"image_processor_type": "Sam2ImageProcessorFast", "size": {"height": 40, "width": 40}}),
]


def _owner(folder: Path, model_type: str, values: dict[str, Any]) -> Any:
    """Returns the processor that AutoImageProcessor makes of the two files."""
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoImageProcessor.from_pretrained(folder)


@pytest.mark.parametrize(("model_type", "values"), PROCESSORS)
def test_pixels_are_the_processors(model_type: str, values: dict[str, Any], tmp_path: Path) -> None:
    owner, ours = _owner(tmp_path, model_type, values), read_processor(values, model_type)
    for photo in PHOTOS:
        expected = owner(Image.fromarray(photo), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        found = ours(photo)
        assert found.shape == expected.shape
        # of bytes, the order of two roundings in float32; of floats, the order of a sum
        np.testing.assert_allclose(
            found, expected, rtol=FLOAT32_ROUNDING, atol=2 * FLOAT32_ROUNDING * np.abs(expected).max()
        )


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        *((kind, {}) for kind in ("vit", "beit", "dinov2", "clip", "chinese_clip", "siglip", "dinov3_vit")),
        ("owlvit", {"image_processor_type": "OwlViTImageProcessor", "size": {"height": 32, "width": 40}}),
        ("vit", {"image_processor_type": "ViTImageProcessor", "do_convert_rgb": True}),
        ("clip", {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": False}),
        ("siglip", {"do_convert_rgb": None}),
        ("sam", {"size": {"longest_edge": 37}, "pad_size": {"height": 40, "width": 40}}),
        ("sam3", {"size": {"height": 42, "width": 42}, "do_convert_rgb": False}),
        ("sam2", {"image_processor_type": "Sam2ImageProcessor", "size": {"height": 32, "width": 32}}),
    ],
)
def test_transparent_colours_are_painted_where_the_processor_paints_them(
    model_type: str, values: dict[str, Any], tmp_path: Path
) -> None:
    owner, ours = _owner(tmp_path, model_type, values), read_processor(values, model_type)
    colour = Image.fromarray(PHOTOS[3])
    palette = colour.quantize(16)
    files = {
        "palette.png": (palette, {"transparency": 3}),
        "several.png": (palette, {"transparency": bytes(range(0, 256, 16))}),
        "palette.gif": (palette, {"transparency": 2}),
        "colour.png": (colour, {"transparency": colour.getpixel((5, 5))}),
        "grey.png": (colour.convert("L"), {"transparency": colour.convert("L").getpixel((5, 5))}),
        "alpha.png": (Image.fromarray(np.dstack([PHOTOS[3], PHOTOS[3][..., 0]])), {}),
    }
    for name, (image, said) in files.items():
        image.save(tmp_path / name, **said)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow would have palettes with transparency turned into RGBA
            expected = owner(transformers.image_utils.load_image(str(tmp_path / name)), return_tensors="np")[
                "pixel_values"
            ][0]
            found = ours((tmp_path / name).read_bytes()).transpose(2, 0, 1)
        allowed = 2 * FLOAT32_ROUNDING * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=FLOAT32_ROUNDING, atol=allowed, err_msg=name)


@pytest.mark.parametrize(("model_type", "values"), PROCESSORS)
def test_what_is_written_is_what_was_read(model_type: str, values: dict[str, Any], tmp_path: Path) -> None:
    value = read_processor(values, model_type)
    written: Any = write_processor(value)
    assert read_processor(written, None) == value
    owner = _owner(tmp_path, model_type, written)
    photo = PHOTOS[0]
    expected = owner(Image.fromarray(photo), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(
        value(photo), expected, rtol=FLOAT32_ROUNDING, atol=2 * FLOAT32_ROUNDING * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"do_resize": False}, "do_resize=False leaves images of every size"),
        ({"do_center_crop": True, "crop_size": 32}, "do_center_crop=True before padding"),
        ({"size": 1024}, "it must be that of the longest_edge"),
        ({"size": {"height": 32, "width": 32}}, "it must be that of the longest_edge"),
        ({"pad_size": None}, "pad_size=None pads images to the largest of a batch"),
        ({"pad_size": {"height": 512, "width": 1024}}, "resized to 1024x1024 do not fit into 512x1024"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order=True is not followed"),
    ],
)
def test_sams_images_that_cannot_be_prepared_are_refused_by_name(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_processor(values, "sam")
    with pytest.raises(ValueError, match="do_pad=True is not followed"):
        read_processor({"do_pad": True}, "sam3")


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(37, 53), (300, 224), (427, 90)])
def test_bytes_are_resized_as_torch_does_to_the_bit(mode: str, size: tuple[int, int]) -> None:
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    hard = np.where(PHOTO > 127, 255, 0).astype(np.uint8)  # overshoots at every edge
    named = {"nearest": "nearest-exact"}.get(mode, mode)
    for image in (PHOTO, hard[:200, :301]):
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        expected = functional.resize(tensor, list(size), interpolation=InterpolationMode(named), antialias=True)
        np.testing.assert_array_equal(torch_resize.resize(image, size, mode), expected.numpy().transpose(1, 2, 0))


TIMM: list[dict[str, Any]] = [
    {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.9},
    {"input_size": [3, 32, 48], "interpolation": "bilinear", "crop_mode": "squash", "crop_pct": 0.875},
    {"input_size": [3, 32, 32], "crop_mode": "border", "crop_pct": 1.0},
    {},
]


@pytest.mark.parametrize("cfg", TIMM)
@pytest.mark.parametrize("flat", [True, False])
def test_pixels_are_timms(cfg: dict[str, Any], flat: bool) -> None:
    from timm.data import create_transform, resolve_data_config  # pyright: ignore[reportPrivateImportUsage]

    name = {"architecture": "vit_tiny_patch16_224"}
    ours = read_timm({**name, **cfg} if flat else {**name, "pretrained_cfg": {"tag": "x", **cfg}})
    assert ours is not None
    owner: Any = create_transform(**resolve_data_config(pretrained_cfg={"tag": "x", **cfg}))
    for photo in PHOTOS:
        np.testing.assert_array_equal(ours(photo), owner(Image.fromarray(photo)).numpy().transpose(1, 2, 0))
    written = write_timm(ours)
    assert not isinstance(written, str)
    assert read_timm({**name, "pretrained_cfg": written}) == ours


@pytest.mark.parametrize("size", [32, (32, 48)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_pixels_are_open_clips(mode: str, size: Any) -> None:
    """open_clip's transform is composed here of its torchvision and timm steps, without open_clip installed."""
    from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
    from torchvision import transforms

    told = {"resize_mode": mode, "interpolation": "bilinear" if mode == "squash" else "bicubic", "fill_color": 127}
    ours = read_open_clip({"model_cfg": {"vision_cfg": {"image_size": size}}, "preprocess_cfg": told})
    sides: Any = (size, size) if isinstance(size, int) else size
    filter_name = transforms.InterpolationMode(told["interpolation"])
    steps: list[Any] = {
        "shortest": [transforms.Resize(32, filter_name), transforms.CenterCrop(sides)],
        "longest": [ResizeKeepRatio(sides, 1.0, "bicubic"), CenterCropOrPad(sides, fill=127)],
        "squash": [transforms.Resize(sides, filter_name)],
    }[mode]
    if mode == "shortest" and sides[0] != sides[1]:
        steps[0] = ResizeKeepRatio(sides, 0.0, "bicubic")
    owner: Any = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(*CLIP)])
    assert ours is not None
    for photo in PHOTOS:
        np.testing.assert_array_equal(ours(photo), owner(Image.fromarray(photo)).numpy().transpose(1, 2, 0))


def test_a_size_to_resize_to_becomes_the_crop_pct_that_timm_rounds_to_it() -> None:
    for resize in range(32, 90):
        value = Preprocessing(image_size=(32, 32), resize_size=(resize, resize), resizer="torchvision")
        written: Any = write_timm(value)
        assert int(32 / written["crop_pct"]) == resize
