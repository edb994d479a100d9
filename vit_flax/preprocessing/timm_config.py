"""timm's pretrained_cfg and open_clip's preprocess_cfg, to `Preprocessing` and back.

Both preprocess with Pillow and ignore the EXIF orientation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_flax.preprocessing.evaluation import PAD, Preprocessing
from vit_flax.presets.preset import CLIP, IMAGENET

OPEN_CLIP_FILE = "open_clip_config.json"
_RESIZE_MODES = {"shortest": "center", "longest": "border", "squash": "squash"}


def read_timm(config: Mapping[str, Any]) -> Preprocessing | None:
    """Returns the preprocessing of timm's config.json, or None for another library's.

    Older files have the fields of pretrained_cfg at the top level. Missing fields have timm's defaults.

    Raises:
        ValueError: a value is out of range.

    Reference: timm.data.resolve_data_config.
    """
    cfg = config.get("pretrained_cfg") or config
    if "architecture" not in config or not isinstance(cfg, Mapping):
        return None
    size = cfg.get("input_size") or (3, 224, 224)
    mode = cfg.get("crop_mode") or "center"
    try:
        return Preprocessing(
            image_size=(size[-2], size[-1]),
            mean=_triple(cfg.get("mean") or IMAGENET[0]),
            std=_triple(cfg.get("std") or IMAGENET[1]),
            crop_pct=cfg.get("crop_pct") or 0.875,
            interpolation=cfg.get("interpolation") or "bicubic",
            crop_mode=mode if mode in ("squash", "border") else "center",
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"config.json: pretrained_cfg cannot be followed: {error}") from error


def write_timm(value: Preprocessing) -> dict[str, object] | str:
    """Returns the fields of a pretrained_cfg, or the reason why timm cannot express the value."""
    size, resize = value.image_size, value.resized_to
    if size is None or resize is None:
        return "timm resizes every image to one size"
    if value.crop_mode == PAD:
        return "timm pads on all sides before normalisation, this model's preprocessing below and on the right after it"
    if value.resizer == "torchvision_floats":
        return "timm rounds pixels after resizing, the transform of this model does not"
    if value.crop_mode == "border" and value.fill not in (None, tuple(round(255 * mean) for mean in value.mean)):
        return "timm's borders have the mean colour"
    shares = {_share(new, old) for new, old in zip(size, resize, strict=True)}
    if value.resize_size is None:
        shares = {value.crop_pct}
    share = next((s for s in shares if tuple(math.floor(side / s) for side in size) == resize), None)
    if share is None or share > 1:
        return f"timm has no crop_pct that resizes to {resize[0]}x{resize[1]} and cuts {size[0]}x{size[1]} out"
    fields = {"mean": list(value.mean), "std": list(value.std), "crop_pct": share}
    fields |= {"interpolation": value.interpolation, "crop_mode": value.crop_mode}
    return {"input_size": [value.channels, *size], **fields}


def _share(new: int, old: int) -> float:
    """Returns the crop_pct for which floor(new / crop_pct) is `old`."""
    share = new / old
    return share if math.floor(new / share) == old else math.nextafter(share, 0)


def read_open_clip(values: Mapping[str, Any]) -> Preprocessing | None:
    """Returns the preprocessing of an open_clip_config.json; missing fields have open_clip's defaults.

    Raises:
        ValueError: a value is out of range, or cannot be expressed.

    Reference: open_clip.transform.PreprocessCfg and image_transform.
    """
    told = values.get("preprocess_cfg") or {}
    size = told.get("size") or ((values.get("model_cfg") or {}).get("vision_cfg") or {}).get("image_size") or 224
    mode = told.get("resize_mode") or "shortest"
    if mode not in _RESIZE_MODES:
        raise ValueError(f"{OPEN_CLIP_FILE}: resize_mode={mode!r} is none of {', '.join(_RESIZE_MODES)}")
    if told.get("mode", "RGB") != "RGB":
        raise ValueError(f"{OPEN_CLIP_FILE}: mode={told['mode']!r} is not followed here, only 'RGB'")
    try:
        return Preprocessing(
            image_size=(size, size) if isinstance(size, int) else tuple(size[-2:]),
            mean=_triple(told.get("mean") or CLIP[0]),
            std=_triple(told.get("std") or CLIP[1]),
            interpolation="bilinear" if told.get("interpolation") == "bilinear" else "bicubic",
            crop_mode=_RESIZE_MODES[mode],
            fill=(told.get("fill_color") or 0,) * 3 if mode == "longest" else None,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{OPEN_CLIP_FILE}: preprocess_cfg cannot be followed: {error}") from error


def _triple(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(value)
