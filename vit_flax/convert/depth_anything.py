"""Depth Anything as transformers has it: rules of neck and head; the backbone has another layout's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.config.dense import DepthConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family, read_config
from vit_flax.convert.rules import CONV, ConversionError, Operation, Rule

MODEL_TYPE = "depth_anything"
BACKBONE = "backbone."
LINEAR = "a backbone under one of DINOv2's linear heads needs that: `head=FILE`"
LAYOUT = "huggingface_dinov2"  # of the backbone, as files have it
# torch has the input's channels first where it enlarges
_ENLARGE = Operation("IOHW -> HWIO", lambda a: a.transpose(2, 3, 0, 1), lambda a: (a.transpose(2, 3, 0, 1),))


def rules(config: DepthConfig) -> tuple[Rule, ...]:
    """Returns the table of neck and head."""
    found: list[Rule] = []

    def convolution(source: str, target: str, operation: Operation = CONV) -> None:
        found.extend(
            (Rule(f"{source}.weight", f"{target}/kernel", operation), Rule(f"{source}.bias", f"{target}/bias"))
        )

    for number, factor in enumerate(config.factors):
        source, target = f"neck.reassemble_stage.layers.{number}", f"neck/reassemble_{number}"
        convolution(f"{source}.projection", f"{target}/projection")
        if factor != 1:
            convolution(f"{source}.resize", f"{target}/resize", _ENLARGE if factor > 1 else CONV)
    found.append(Rule("neck.convs.{i}.weight", "neck/convs_{i}/kernel", CONV))
    source, target = "neck.fusion_stage.layers.{i}", "neck/fusion_{i}"
    convolution(f"{source}.projection", f"{target}/projection")
    convolution(f"{source}.residual_layer{{n}}.convolution{{m}}", f"{target}/residual_layer{{n}}/convolution{{m}}")
    convolution("head.conv{n}", "head/conv{n}")
    return tuple(found)


_ATTRIBUTES = {
    "backbone_config": None, "patch_size": 14, "reassemble_hidden_size": 384, "reassemble_factors": (4, 2, 1, 0.5),
    "neck_hidden_sizes": (48, 96, 192, 384), "fusion_hidden_size": 64, "head_hidden_size": 32,
    "depth_estimation_type": "relative", "max_depth": 1,
}  # fmt: skip


def _fields(attributes: Mapping[str, Any]) -> dict[str, object]:
    backbone = attributes["backbone_config"]
    if not isinstance(backbone, Mapping):
        raise ConversionError("no backbone_config: the backbone would be fetched from elsewhere")
    return {
        "layers": _layers(backbone),
        "factors": tuple(attributes["reassemble_factors"]),
        "neck_sizes": tuple(attributes["neck_hidden_sizes"]),
        "fusion_size": attributes["fusion_hidden_size"],
        "head_size": attributes["head_hidden_size"],
        "depth_type": attributes["depth_estimation_type"],
        "max_depth": float(attributes["max_depth"] or 1),
    }


def _layers(backbone: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the blocks that a backbone hands out; its stage 0 stands before the first."""
    if backbone.get("out_indices"):
        stages = [int(index) for index in backbone["out_indices"]]
    else:
        stages = [int(str(name).removeprefix("stage")) for name in backbone.get("out_features") or ()]
    depth = int(backbone.get("num_hidden_layers", 12))
    stages = [stage if stage >= 0 else stage + depth + 1 for stage in stages]
    if not stages or min(stages) < 1:
        raise ConversionError(f"out_indices {stages} of the backbone are not numbers of blocks")
    return tuple(stage - 1 for stage in stages)


_FAMILY = Family(
    layout=LAYOUT,
    defaults=_ATTRIBUTES,
    fields=_fields,
    only={
        "head_in_index": (-1,),
        "use_pretrained_backbone": (False,),
        "backbone": (None,),
        "use_timm_backbone": (False,),
    },
    harmless=(*hf.HARMLESS, "backbone_kwargs"),
)


def read_depth_config(values: Mapping[str, object], source: str) -> dict[str, object]:
    """Returns the fields of a DepthConfig but for the backbone.

    Raises:
        ConversionError: it is no config of Depth Anything, or asks for what this library does not compute.
    """
    kind = values.get("model_type")
    if kind != MODEL_TYPE:
        said = f"its config says model_type {kind!r}, not" if kind else "its config says no model_type, which is"
        raise ConversionError(f"{source}: is no depth model: {said} {MODEL_TYPE!r}; {LINEAR}")
    told = read_config(values, {MODEL_TYPE: _FAMILY}, source)
    assert told is not None
    return dict(told.fields)


def write_depth_config(config: DepthConfig, backbone: Mapping[str, object]) -> dict[str, object]:
    """Returns transformers' config.json of a model, given that of its backbone."""
    stages = [layer + 1 for layer in config.layers]
    numbers = {"out_indices": stages, "out_features": [f"stage{stage}" for stage in stages]}
    inner = {name: value for name, value in backbone.items() if name != "architectures"}
    return {
        "architectures": ["DepthAnythingForDepthEstimation"],
        "model_type": MODEL_TYPE,
        "backbone_config": {**inner, **numbers, "reshape_hidden_states": False, "apply_layernorm": True},
        "patch_size": config.backbone.patch_size[0],
        "reassemble_hidden_size": config.backbone.embed_dim,
        "reassemble_factors": list(config.factors),
        "neck_hidden_sizes": list(config.neck_sizes),
        "fusion_hidden_size": config.fusion_size,
        "head_in_index": -1,
        "head_hidden_size": config.head_size,
        "depth_estimation_type": config.depth_type,
        "max_depth": config.max_depth if config.max_depth != int(config.max_depth) else int(config.max_depth),
    }


def check_backbone(config: ViTConfig) -> None:
    """Raises ConversionError where transformers' class would not compute what the model does."""
    if config.reg_tokens:
        raise ConversionError("reg_tokens: transformers' depth models take registers for patches")
