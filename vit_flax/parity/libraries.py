"""Compares a checkpoint, as it is loaded here, with the installed timm or transformers model of the same weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import PyTree

from vit_flax.config import ViTConfig
from vit_flax.convert import Checkpoint, ConversionError, Layout, get_layout
from vit_flax.convert.timm_config import layout_of
from vit_flax.parity.compare import require_x64
from vit_flax.parity.inputs import draw_images
from vit_flax.parity.other_models import Peer, compare_peer, every_tensor_has_a_place, tokens_of
from vit_flax.parity.peers import import_peer
from vit_flax.parity.report import Report
from vit_flax.parity.transformers_models import transformers_peer
from vit_flax.preparing import config_of_library
from vit_flax.presets import PRESETS
from vit_flax.pretrained import to_state_dict
from vit_flax.reading import Reading

LIBRARIES = ("timm", "transformers")
_TIMM_LAYOUTS = ("timm", "deit", "timm_sam", "timm_sam2")  # the names of timm's own state_dicts


def compare_checkpoint(reading: Reading, against: str | None = None, name: str | None = None, seed: int = 0) -> Report:
    """Compares components, tokens and output on random images, in float64 and float32.

    Args:
        reading: of the checkpoint.
        against: 'timm' or 'transformers'; None takes the one that the layout belongs to.
        name: timm's name of the model; None takes the preset's or the config.json's.
        seed: seed of the images.

    Raises:
        ConversionError: the checkpoint cannot be loaded, or the library has no such model.
        ImportError: the library is not installed.
    """
    require_x64()
    model, params = reading.build_image_tower()
    checkpoint, found = reading.checkpoint, reading.layout
    against = against or _library_of(found)
    images = draw_images(model.config, seed)
    if against == "transformers":
        peer = transformers_peer(checkpoint, found, model, params, images)
    else:
        name = name or _timm_name(checkpoint, reading.wish.config)
        peer = _timm_peer(checkpoint, found, model, params, name)
    return compare_peer(peer, model, params, images, f"{checkpoint.source} ({found.name})")


def _library_of(layout: Layout) -> str:
    if layout.is_transformers:
        return "transformers"
    if layout.name in _TIMM_LAYOUTS:
        return "timm"
    raise ConversionError(
        f"layout {layout.name!r} belongs to neither {' nor '.join(LIBRARIES)}; "
        "--against transformers, or --against timm with --model NAME, compares what this library makes of it"
    )


# fields that override the architecture of a timm name, and timm's constructor arguments for them
_TIMM_SIZES = {
    "image_size": "img_size", "patch_size": "patch_size", "in_chans": "in_chans", "num_classes": "num_classes",
    "embed_dim": "embed_dim", "depth": "depth", "num_heads": "num_heads", "mlp_ratio": "mlp_ratio",
}  # fmt: skip
# and of trunks with windows, by the same name; tensors of other values fit no other model
_TIMM_WINDOWED = (
    "qkv_bias", "qk_norm", "init_values", "window_size", "global_attn_indexes", "use_rel_pos", "neck_chans",
)  # fmt: skip


def _timm_name(checkpoint: Checkpoint, config: Any) -> str:
    if isinstance(config, str) and config in PRESETS and "/" not in config:
        return config
    architecture = config_of_library(checkpoint).get("architecture")
    if isinstance(architecture, str):
        return architecture
    raise ConversionError("timm's name of the model is not known: pass --model NAME (or --config with timm's preset)")


def _timm_peer(checkpoint: Checkpoint, layout: Layout, model: Any, params: PyTree, name: str) -> Peer:
    timm = import_peer("timm")
    import torch

    config = model.config
    if config.block.startswith("diff"):
        raise ConversionError("timm computes differential attention's weight in float32: float64 cannot decide")
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise ConversionError(f"timm {timm.__version__} has no model {architecture!r}")
    preset = PRESETS[architecture].config if architecture in PRESETS else ViTConfig()
    layout_there = layout_of(config)
    spelled = {field: layout_there.arguments.get(field, argument) for field, argument in _TIMM_SIZES.items()}
    taken = config.family.fields.keys() - layout_there.implied(config.fields()).keys()
    changes = {
        argument: getattr(config, field)
        for field, argument in spelled.items()
        if argument and field in taken and (getattr(config, field) != getattr(preset, field) or field == "num_classes")
    }
    if config.family == preset.family and set(_TIMM_WINDOWED) <= config.family.fields.keys():
        given = {field: getattr(config, field) for field in _TIMM_WINDOWED}
        changes |= {field: value for field, value in given.items() if value != getattr(preset, field)}
        changes["global_pool"] = "" if config.global_pool == "none" else config.global_pool
    if layout.name not in _TIMM_LAYOUTS and config.norm_layer == "layernorm" and config.norm_eps != preset.norm_eps:
        changes["norm_layer"] = partial(torch.nn.LayerNorm, eps=config.norm_eps)  # another owner's
    module = timm.create_model(architecture, pretrained=False, **changes).double().eval()
    named = next((n for n in _TIMM_LAYOUTS if not get_layout(n).refusals(config)), "timm")
    if layout.name in _TIMM_LAYOUTS:
        names = layout.renamed(checkpoint.shapes)
        tensors: dict[str, np.ndarray] = {names[name]: checkpoint.read(name) for name in checkpoint.shapes}
    else:
        tensors = to_state_dict(model, params, named)
    try:
        state = {name: torch.from_numpy(np.array(array, np.float64)) for name, array in tensors.items()}
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        said = str(error).splitlines()[-1].strip().rstrip(".")
        advice = (
            "; position embeddings of another size: resize them with vit-flax convert first" if "pos" in said else ""
        )
        raise ConversionError(f"timm's {architecture} cannot hold these tensors: {said}{advice}") from error

    def outputs(module: Any, pixels: Any) -> dict[str, Any]:
        found = {"features": module.forward_features(pixels), "output": module(pixels)}
        return {name: tokens_of(array, config) for name, array in found.items()}

    checks = every_tensor_has_a_place(result.missing_keys, result.unexpected_keys, "timm")
    return Peer(f"timm's {architecture}", module, get_layout(named), outputs, checks)
