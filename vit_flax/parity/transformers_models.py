"""transformers' model of a checkpoint: its class, and its weights."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PyTree

from vit_flax.config import ViTConfig
from vit_flax.convert import FAMILIES, LAYOUTS, Checkpoint, ConversionError, Layout, holds_text, write_checkpoint
from vit_flax.parity.inputs import DrawnImages
from vit_flax.parity.other_models import Peer, every_tensor_has_a_place, tokens_of
from vit_flax.parity.peers import import_peer
from vit_flax.pretrained import fit_layout, to_state_dict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vit_flax.models import VisionTransformer


def load_transformers(
    tensors: Mapping[str, np.ndarray], kind: type[PreTrainedModel], values: Mapping[str, object]
) -> tuple[PreTrainedModel, list[str]]:
    """Loads a checkpoint as a transformers model in float64, and returns it with its missing keys.

    Args:
        checkpoint: under transformers' names.
        kind: transformers' class of the model.
        values: fields of config.json.

    Raises:
        ConversionError: transformers cannot load the checkpoint as `kind`.
    """
    import torch

    values = {name: value for name, value in values.items() if name not in ("model_type", "architectures")}
    with tempfile.TemporaryDirectory() as folder:
        told = {**values, "model_type": kind.config_class.model_type}  # pyright: ignore[reportOptionalMemberAccess]
        write_checkpoint(Path(folder) / "weights", tensors, {}, told)
        built: Any = kind.config_class
        given: dict[str, Any] = {"config": built(**values), "dtype": torch.float64}
        try:
            loaded: Any = kind.from_pretrained(Path(folder) / "weights", **given, output_loading_info=True)
        except (RuntimeError, ValueError) as error:
            raise ConversionError(f"transformers cannot load it as {kind.__name__}: {error}") from error
    module, info = loaded
    return module.eval(), list(info["missing_keys"])


def _class_of(
    values: Mapping[str, Any], kind: type[PreTrainedModel], layout: Layout, config: ViTConfig
) -> tuple[type[PreTrainedModel], Mapping[str, Any]]:
    """Returns transformers' class of an image model, and its values in a config.json, also in a larger model's.

    Args:
        values: of the config.json.
        kind: the class that the layout's own config.json names.
        layout: of the tensors.
        config: what was made of them.
    """
    found: dict[Any, Mapping[str, Any]] = {}
    parts = [values]
    while parts:  # from the outside to the inside
        part = parts.pop(0)
        found.setdefault(part.get("model_type"), part)
        parts += [inner for inner in part.values() if isinstance(inner, dict)]
    # an image tower's config inside both towers' leaves the width of the projection to the outer one
    projected = {"projection_dim": config.num_classes} if config.num_classes else {}
    own: Any = kind.config_class
    if (part := found.get(own.model_type)) is not None:
        return kind, part if part is values else {**part, **projected}
    for name in reversed(found):  # another class of the same tensors: SAM-HQ's beside SAM's
        if name in FAMILIES and FAMILIES[name].layout == layout.name and (other := _class_named(name)):
            return other, found[name]
    return kind, {**values.get("vision_config", {}), **projected}


def _class_named(model_type: str) -> Any:
    transformers = import_peer("transformers")
    if model_type not in transformers.CONFIG_MAPPING:
        return None
    found = transformers.MODEL_MAPPING.get(transformers.CONFIG_MAPPING[model_type], None)
    return found[0] if isinstance(found, tuple) else found


def _as_theirs(model: VisionTransformer, params: PyTree) -> tuple[Layout, ViTConfig, dict[str, np.ndarray]]:
    """Returns the first of transformers' layouts that holds a model, with the model's config and tensors in it.

    Raises:
        ConversionError: none does.
    """
    theirs = [layout for layout in LAYOUTS.values() if layout.is_transformers and layout.config_file]
    theirs = [layout for layout in theirs if not holds_text(layout)]
    for layout in theirs:
        fitted, kept, _ = fit_layout(model, params, layout.name)
        if not layout.refusals(fitted.config):
            return layout, fitted.config, to_state_dict(fitted, kept, layout.name)
    raise ConversionError("transformers has no class of such a model, or none that this library writes")


def transformers_peer(
    checkpoint: Checkpoint, layout: Layout, model: VisionTransformer, params: PyTree, images: DrawnImages
) -> Peer:
    """Returns transformers' model of a checkpoint, converted by this library where it is another library's.

    Raises:
        ConversionError: transformers has none, or cannot load it.
    """
    transformers = import_peer("transformers")
    transformers.utils.logging.disable_progress_bar()
    config, is_theirs = model.config, layout.is_transformers
    written, tensors = config, {}
    if is_theirs:
        tensors = {name: checkpoint.read(name) for name in checkpoint.shapes}
    else:
        layout, written, tensors = _as_theirs(model, params)
    if layout.config_file is None:
        raise ConversionError(f"layout {layout.name!r} is none of transformers' files")
    translated: Mapping[str, Any] = layout.config_file(written)
    # the file's own config decides, so that a wrong translation shows
    beside: Mapping[str, Any] = checkpoint.config or {}
    told = beside if is_theirs and "model_type" in beside else translated
    kind, values = _class_of(told, getattr(transformers, translated["architectures"][0]), layout, config)
    module, absent = load_transformers(tensors, kind, values)
    return peer_of(module, absent, layout, config, images)


def peer_of(module: PreTrainedModel, absent: list[str], layout: Layout, config: ViTConfig, images: DrawnImages) -> Peer:
    """Returns transformers' model with the parts to compare.

    Args:
        module: in float64.
        absent: its parameters that no weights were found for.
        layout: of its files.
        config: of the Flax model.
        images: that both are given.
    """
    import torch

    kind = type(module)
    left_out = ("pooler.",) if config.representation_size is None else ()
    missing = [name for name in absent if not name.startswith(left_out)]
    if hasattr(module.config, "mask_ratio"):
        module.config.mask_ratio = 0.0  # ViT-MAE without masking, as here
    pooled = config.representation_size is not None or not absent

    def outputs(module: Any, pixels: Any) -> dict[str, Any]:
        more = images.torch_arguments()
        if hasattr(module.config, "mask_ratio"):
            more["noise"] = torch.arange(config.num_patches, dtype=pixels.dtype).expand(len(pixels), -1)
        out = kind.forward(module, pixels, **more)
        maps = out.get("fpn_hidden_states")  # a feature pyramid, from fine to coarse
        found = {"features": tokens_of(out.get("last_hidden_state") if maps is None else maps[-1], config)}
        names = ("logits", "image_embeds", "pooler_output") if pooled else ("logits", "image_embeds")
        found["output"] = next((out[name] for name in names if out.get(name) is not None), None)
        return {name: array for name, array in found.items() if array is not None}

    def forward(self: Any, pixels: Any) -> Any:
        return next(iter(reversed(outputs(self, pixels).values())))

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    memory = LAYOUTS.get(f"{layout.name.removesuffix('_memory')}_memory", layout)
    checks = every_tensor_has_a_place(missing, [], "transformers")
    return Peer(f"transformers' {kind.__name__}", module, memory, outputs, checks)
