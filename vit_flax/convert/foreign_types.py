"""Hugging Face model types that resemble a ViT and are not read: patterns of `model_type`, and the reason."""

from __future__ import annotations

import re

_VIDEO = "it reads video"
_LANGUAGE = "its blocks are a language model's (RMSNorm, gates, rotations over packed images of any size)"
_REASONS: tuple[tuple[str, str], ...] = (
    (r"vitmatte", "convolutions stand after some of its blocks"),
    (
        r"lw_detr(_vit)?|rf_detr(_dinov2)?",
        "parts of an image go through its blocks as images",
    ),
    (r"hiera", "its tokens lie window by window, and its blocks pool queries of whole windows (a Hiera)"),
    (r"edgetam(_\w+)?", "its image encoder is a convolutional network (a RepViT)"),
    (r"swin\w*|maskformer-swin", "its windows are shifted and its stages of other widths (a Swin)"),
    (r"(videomae|vivit|timesformer|vjepa2|videoprism|x_?clip(_vision_model)?)", _VIDEO),
    (r"pixtral|(qwen|ovis2|kimi|gemma4|glm|llama4|smolvlm|idefics)\w*|mllama_vision_model", _LANGUAGE),
    (r"sapiens2\w*", "several queries share a key, and LayerScale is after attention alone"),
    (r"dpt|zoedepth|prompt_depth_anything|tipsv2_dpt|upernet", "of dense heads only Depth Anything's is read"),
    (r"yolos|seggpt|eomt\w*|vitpose\w*|groupvit\w*", "its tokens are not those of a classifier"),
    (r"levit|cvt|pvt\w*|mobilevit\w*|convnext\w*|segformer", "it is convolutional at least in part"),
)


def why_not(model_type: str) -> str | None:
    """Returns the reason why a model type is not read, or None for one that nothing is known of."""
    return next((reason for pattern, reason in _REASONS if re.fullmatch(pattern, model_type)), None)
