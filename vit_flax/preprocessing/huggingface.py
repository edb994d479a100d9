"""Image processors of transformers: preprocessor_config.json to `Preprocessing` and back.

Their default backend is followed: with torchvision installed, images are resized as tensors, and the pipeline applies
the EXIF orientation. With Pillow instead (backend="pil") a few pixels differ by a grey level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_flax.preprocessing.evaluation import PAD, PATCHES, Preprocessing
from vit_flax.presets.preset import CLIP, IMAGENET, INCEPTION, Normalisation

PROCESSOR_FILE = "preprocessor_config.json"
# Pillow's numbers of its filters
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclasses.dataclass(frozen=True)
class _Processor:
    """The defaults of a processor's fields.

    Reference: the class of that name in transformers.
    """

    normalisation: Normalisation
    resample: int
    size: Any = 224
    square: bool = True  # one number is the side of a square, not of the shorter edge
    do_center_crop: bool = False
    crop_size: int | None = None
    floats: bool = False  # pixels are scaled to 0..1 before resizing
    convert_rgb: bool = False  # a transparent colour is painted white; the pipeline has converted the rest
    patches: tuple[int, int] | None = None  # patch_size and max_num_patches of NaFlex
    pad_size: int | None = None  # side of the square that images are zero-padded to, below and on the right


_PROCESSORS = {
    "ViTImageProcessor": _Processor(INCEPTION, 2),
    "DeiTImageProcessor": _Processor(INCEPTION, 3, 256, do_center_crop=True, crop_size=224),
    "BeitImageProcessor": _Processor(INCEPTION, 3, crop_size=224),
    "BitImageProcessor": _Processor(CLIP, 3, square=False, do_center_crop=True, crop_size=224, convert_rgb=True),
    "CLIPImageProcessor": _Processor(CLIP, 3, square=False, do_center_crop=True, crop_size=224, convert_rgb=True),
    "ChineseCLIPImageProcessor": _Processor(
        CLIP, 3, square=False, do_center_crop=True, crop_size=224, convert_rgb=True
    ),
    "OwlViTImageProcessor": _Processor(CLIP, 3, {"height": 768, "width": 768}, crop_size=768, convert_rgb=True),
    "SiglipImageProcessor": _Processor(INCEPTION, 3, {"height": 224, "width": 224}, square=False, convert_rgb=True),
    "Siglip2ImageProcessor": _Processor(INCEPTION, 2, patches=(16, 256)),
    "DINOv3ViTImageProcessor": _Processor(IMAGENET, 2, floats=True),
    "SamImageProcessor": _Processor(IMAGENET, 2, {"longest_edge": 1024}, convert_rgb=True, pad_size=1024),
    "Sam3ImageProcessor": _Processor(INCEPTION, 2, 1008, convert_rgb=True),
    "Sam2ImageProcessor": _Processor(IMAGENET, 2, {"height": 1024, "width": 1024}, convert_rgb=True),
}
# the processor of a model type, where the file does not name it
_OF_MODELS = {
    **dict.fromkeys(("vit", "ijepa", "vit_mae", "vit_msn"), "ViTImageProcessor"),
    **dict.fromkeys(("beit", "data2vec-vision"), "BeitImageProcessor"),
    **dict.fromkeys(("clip", "clip_vision_model", "metaclip_2", "metaclip_2_vision_model"), "CLIPImageProcessor"),
    **dict.fromkeys(("altclip", "altclip_vision_model", "mlcd_vision_model"), "CLIPImageProcessor"),
    **dict.fromkeys(("aimv2", "aimv2_vision_model"), "CLIPImageProcessor"),
    **dict.fromkeys(("chinese_clip", "chinese_clip_vision_model"), "ChineseCLIPImageProcessor"),
    **dict.fromkeys(("owlvit", "owlvit_vision_model"), "OwlViTImageProcessor"),
    "clipseg": "ViTImageProcessor",
    "pixio": "BitImageProcessor",
    **dict.fromkeys(("siglip", "siglip_vision_model"), "SiglipImageProcessor"),
    **dict.fromkeys(("siglip2", "siglip2_vision_model"), "Siglip2ImageProcessor"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), "BitImageProcessor"),
    "dinov3_vit": "DINOv3ViTImageProcessor",
    **dict.fromkeys(("sam", "sam_vision_model", "sam_hq", "sam_hq_vision_model"), "SamImageProcessor"),
    **dict.fromkeys(("sam3", "sam3_vision_model", "sam3_vit_model"), "Sam3ImageProcessor"),
    **dict.fromkeys(("sam3_video", "sam3_tracker", "sam3_tracker_video", "sam3_lite_text"), "Sam3ImageProcessor"),
    **dict.fromkeys(("sam2", "sam2_vision_model", "sam2_video"), "Sam2ImageProcessor"),
    "deit": "DeiTImageProcessor",
}
_SWITCHES = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_NO_MATTER = {"do_reduce_labels"}  # of segmentation maps


def read_processor(values: Mapping[str, object], model_type: str | None, file: str = PROCESSOR_FILE) -> Preprocessing:
    """Returns the preprocessing of a preprocessor_config.json.

    Args:
        values: the JSON object.
        model_type: model_type of the config.json beside it, which determines a processor that the file does not name.
        file: name of the file in messages.

    Raises:
        ValueError: the processor is unknown, or a field cannot be expressed; the message names it.
    """
    kind = _kind(values, model_type)
    if kind not in _PROCESSORS:
        raise ValueError(f"{file}: processor {str(kind)[:60]!r} is not known; known: {', '.join(_PROCESSORS)}")
    processor = _PROCESSORS[kind]
    followed = _SWITCHES | _NO_MATTER | ({"do_pad"} if processor.pad_size else set())
    for name, value in values.items():  # null is not the default: a null switch is off
        if name.startswith("do_") and name not in followed and value:
            raise ValueError(f"{file}: {name}={value!r} is not followed here")
    try:
        return _read(values, processor)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: a value is of the wrong type ({error!r})") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _kind(values: Mapping[str, Any], model_type: str | None) -> Any:
    kind = values.get("image_processor_type")
    if kind is None and isinstance(old := values.get("feature_extractor_type"), str):
        kind = old.replace("FeatureExtractor", "ImageProcessor")
    if kind is None:
        kind = values.get("video_processor_type") or values.get("processor_class") if model_type is None else None
        kind = _OF_MODELS.get(model_type or "", kind or f"of model_type {model_type}")
    return str(kind).removesuffix("Fast").removesuffix("Pil")


def _read(given: Mapping[str, Any], processor: _Processor) -> Preprocessing:
    fields: dict[str, Any] = {"crop_mode": "none", "image_size": None, "exif": True}
    fields["resizer"] = "torchvision_floats" if processor.floats else "torchvision"
    if processor.patches is not None:
        fields |= _patches(given, processor.patches)
    elif processor.pad_size is not None:
        fields |= _padding(given, processor.size, processor.pad_size)
    elif given.get("do_resize", True):
        size = given.get("size", processor.size)
        if given.get("use_square_size") and "size" not in given:
            size = {"height": 224, "width": 224}
        fields |= _resizing(size, given.get("default_to_square", processor.square))
    squares = processor.patches is None and processor.pad_size is None
    if squares and given.get("do_center_crop", processor.do_center_crop):
        fields["image_size"] = _pair("crop_size", given.get("crop_size", processor.crop_size))
    resample = given.get("resample", processor.resample)
    if isinstance(resample, bool) or resample not in _RESAMPLE:
        raise ValueError(f"resample={resample!r} is none of Pillow's filters, {', '.join(map(str, _RESAMPLE))}")
    fields["interpolation"] = _RESAMPLE[resample]
    fields["white_transparency"] = bool(given.get("do_convert_rgb", processor.convert_rgb))
    return Preprocessing(**fields, **_statistics(given, processor))


def _patches(given: Mapping[str, Any], usual: tuple[int, int]) -> dict[str, Any]:
    if not given.get("do_resize", True):
        raise ValueError("do_resize=False leaves images of which only some divide into patches")
    names = ("patch_size", "max_num_patches")  # crop and size are ignored
    counts = {name: given.get(name) or default for name, default in zip(names, usual, strict=True)}
    return {"crop_mode": PATCHES, **counts}


def _padding(given: Mapping[str, Any], usual: Any, side: int) -> dict[str, Any]:
    if not given.get("do_resize", True):
        raise ValueError("do_resize=False leaves images of every size to be padded, which is not followed here")
    if given.get("do_center_crop"):
        raise ValueError("do_center_crop=True before padding is not followed here")
    size = given.get("size", usual)
    kept = {name: value for name, value in size.items() if value is not None} if isinstance(size, Mapping) else {}
    if kept.keys() != {"longest_edge"}:
        raise ValueError(f"size={size!r} is not followed here: it must be that of the longest_edge")
    fields: dict[str, Any] = {"crop_mode": PAD, "resize_size": (kept["longest_edge"],) * 2}
    if given.get("do_pad", True):
        found = given.get("pad_size", side)
        if found is None:
            raise ValueError("pad_size=None pads images to the largest of a batch, which is not followed here")
        fields["image_size"] = _pair("pad_size", found)
    return fields


def _resizing(size: Any, square: bool) -> dict[str, Any]:
    if isinstance(size, Mapping):
        size = {name: side for name, side in size.items() if side is not None}
        if size.keys() == {"shortest_edge"}:
            return {"crop_mode": "center", "resize_size": (size["shortest_edge"],) * 2}
        if size.keys() != {"height", "width"}:
            raise ValueError(f"size with {' and '.join(map(str, size)) or 'nothing'} is not followed here")
    elif isinstance(size, int) and not square:
        return {"crop_mode": "center", "resize_size": (size, size)}
    sides = _pair("size", size)
    return {"crop_mode": "squash", "resize_size": sides, "image_size": sides}


def _pair(name: str, size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        size = {key: side for key, side in size.items() if side is not None}
        if size.keys() != {"height", "width"}:
            raise ValueError(f"{name} with {' and '.join(map(str, size)) or 'nothing'} is not followed here")
        return size["height"], size["width"]
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return tuple(size)  # pyright: ignore[reportReturnType]
    raise ValueError(f"{name}={size!r} is no size")


def _statistics(given: Mapping[str, Any], processor: _Processor) -> dict[str, Any]:
    """Returns mean and std for pixels in 0..1, whatever range the processor rescales to."""
    mean, std = (0.0,) * 3, (1.0,) * 3
    if given.get("do_normalize", True):
        mean, std = (
            tuple(found) if isinstance(found, list | tuple) else (float(found),) * 3
            for found in (given.get("image_mean", processor.normalisation[0]),
                          given.get("image_std", processor.normalisation[1]))
        )  # fmt: skip
    scale = 255 * float(given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1)
    if abs(scale - 1) > 1e-9:
        mean, std = (tuple(value / scale for value in values) for values in (mean, std))
    return {"mean": mean, "std": std}


def write_processor(value: Preprocessing) -> dict[str, object] | str:
    """Returns the preprocessor_config.json of a value, or the reason why no processor of transformers expresses it.

    The classes are those that transformers 4 and 5 both read.
    """
    if value.channels != 3:
        return f"transformers turns every image into RGB, this model's have {value.channels} channels"
    if value.crop_mode == "border":
        return "no processor of these models adds borders"
    if value.interpolation in ("box", "hamming"):
        return f"torchvision does not resize tensors with interpolation {value.interpolation!r}"
    resize, size = value.resized_to, value.image_size
    shared = {
        "do_convert_rgb": value.white_transparency,
        "do_resize": value.crop_mode != "none",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(value.mean),
        "image_std": list(value.std),
        "resample": next(number for number, name in _RESAMPLE.items() if name == value.interpolation),
    }
    if value.crop_mode == PATCHES:
        patches = {"patch_size": value.patch_size, "max_num_patches": value.max_num_patches}
        return {"image_processor_type": "Siglip2ImageProcessor", **patches, **shared}
    if value.crop_mode == PAD:
        if value.resizer == "torchvision_floats":
            return "the processor that pads images rounds pixels after resizing, these are not rounded"
        if resize is None:
            return "nothing tells to what size images are resized"
        if resize[0] != resize[1]:
            return f"no processor of these models resizes the longer side for images of {resize[0]}x{resize[1]}"
        pad = {"do_pad": size is not None, **({"pad_size": _sides(size)} if size else {})}
        return {"image_processor_type": "SamImageProcessor", "size": {"longest_edge": resize[0]}, **shared, **pad}
    crop = {"do_center_crop": size is not None, **({"crop_size": _sides(size)} if size else {})}
    if value.crop_mode == "squash" and size == resize and size:
        kind = "DINOv3ViTImageProcessorFast" if value.resizer == "torchvision_floats" else "ViTImageProcessor"
        return {"image_processor_type": kind, "size": _sides(size), **shared}
    if value.resizer == "torchvision_floats":
        return {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": _size(value), **shared, **crop}
    if value.crop_mode == "squash":
        return {"image_processor_type": "DeiTImageProcessor", "size": _size(value), **shared, **crop}
    if resize and resize[0] != resize[1]:
        return f"no processor of these models resizes the shorter side for images of {resize[0]}x{resize[1]}"
    return {"image_processor_type": "BitImageProcessor", "size": _size(value), **shared, **crop}


def _size(value: Preprocessing) -> dict[str, int]:
    sides = value.resized_to or (224, 224)  # 'none': the class requires a size and ignores it
    return {"shortest_edge": sides[0]} if value.crop_mode == "center" else _sides(sides)


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}
