"""Compares a checkpoint, as it is loaded here, with the installed timm or transformers model of the same weights."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import PyTree

from vit_flax.config import ViTConfig
from vit_flax.convert import LAYOUTS, Checkpoint, ConversionError, Layout, get_layout, write_checkpoint
from vit_flax.parity.compare import compare_components, require_x64, subject_of
from vit_flax.parity.inputs import DrawnImages, draw_images, positions_in_float64
from vit_flax.parity.outputs import Outputs, compare_outputs
from vit_flax.parity.peers import import_peer
from vit_flax.parity.report import Check, Report
from vit_flax.preparing import config_of_library
from vit_flax.presets import PRESETS
from vit_flax.pretrained import to_state_dict
from vit_flax.reading import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIBRARIES = ("timm", "transformers")
_TIMM_LAYOUTS = ("timm", "deit", "timm_sam")  # the names of timm's own state_dicts
OUTPUTS = {"features": "method='features'", "output": "method='__call__'"}  # by name, the Flax call


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another library's model with a checkpoint's weights."""

    title: str
    module: Any  # in float64 and evaluation mode; returns one tensor
    layout: Layout  # of the names of its modules
    outputs: Outputs
    checks: list[Check]


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
    start = time.monotonic()
    model, params = reading.build_image_tower()
    checkpoint, found = reading.checkpoint, reading.layout
    against = against or _library_of(found)
    images = draw_images(model.config, seed)
    if against == "transformers":
        peer = _transformers_peer(checkpoint, found, model.config, images)
    else:
        name = name or _timm_name(checkpoint, reading.wish.config)
        peer = _timm_peer(checkpoint, found, model, params, name)
    subject = subject_of(peer.module, model, params, peer.layout)
    padding = images.flax_arguments
    if padding:
        run = partial(_apply, model, padding)
        subject = dataclasses.replace(subject, function=run, to_flax=images.to_flax)
    report = Report(
        f"{checkpoint.source} ({found.name}) against {peer.title}", model.config.to_dict(), checks=peer.checks
    )
    with positions_in_float64(peer.module):
        report.sections["components"] = compare_components(subject, images.pixels)
        report.sections["outputs"] = compare_outputs(
            peer.outputs, peer.module, partial(_flax_outputs, model, padding), subject.params, images, OUTPUTS
        )
    report.seconds = time.monotonic() - start
    return report


def _library_of(layout: Layout) -> str:
    if layout.name.startswith("huggingface_"):
        return "transformers"
    if layout.name in _TIMM_LAYOUTS:
        return "timm"
    raise ConversionError(
        f"layout {layout.name!r} belongs to neither {' nor '.join(LIBRARIES)}; "
        "--against timm with --model NAME compares what this library makes of it"
    )


def _apply(model: Any, padding: Mapping[str, np.ndarray], params: PyTree, pixels: jax.Array) -> jax.Array:
    found: jax.Array = model.apply({"params": params}, pixels, **padding)
    return found


def _flax_outputs(
    model: Any, padding: Mapping[str, np.ndarray], params: PyTree, pixels: jax.Array
) -> dict[str, jax.Array]:
    call = partial(model.apply, {"params": params}, pixels, **padding)
    return {"features": call(method="features"), "output": call()}


def _tokens(features: Any) -> Any:
    """Flattens feature maps (B, C, H, W), as trunks return them, to tokens (B, N, C)."""
    return features.flatten(2).swapaxes(1, 2) if features is not None and features.ndim == 4 else features


def every_tensor_has_a_place(missing: Iterable[str], unexpected: Iterable[str], library: str) -> list[Check]:
    """Returns the check that another library's model has no missing and no unexpected keys."""
    text = f"{library} finds a place for every tensor and a tensor for every parameter"
    wrong = [*(f"no {name}" for name in missing), *(f"nothing to do with {name}" for name in unexpected)]
    more = f": {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}" if wrong else ""
    return [Check(text + more, not wrong)]


def load_transformers(
    checkpoint: Checkpoint, kind: type[PreTrainedModel], values: Mapping[str, object]
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
    tensors = {name: checkpoint.read(name) for name in checkpoint.shapes}
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


def _transformers_peer(checkpoint: Checkpoint, layout: Layout, config: ViTConfig, images: DrawnImages) -> Peer:
    if layout.config_file is None:
        raise ConversionError(f"layout {layout.name!r} is none of transformers'")
    transformers = import_peer("transformers")
    transformers.utils.logging.disable_progress_bar()
    import torch

    translated: Mapping[str, Any] = layout.config_file(config)
    kind = getattr(transformers, translated["architectures"][0])
    # the file's own config decides, so that a wrong translation shows
    beside: Mapping[str, Any] = checkpoint.config or {}
    values = dict(beside if "model_type" in beside else translated)
    if values["model_type"] != kind.config_class.model_type:  # an image tower beside a text tower
        projected = {"projection_dim": config.num_classes} if config.num_classes else {}
        values = {**values.get("vision_config", {}), **projected}
    module: Any
    module, absent = load_transformers(checkpoint, kind, values)
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
        found = {"features": _tokens(out.get("last_hidden_state"))}
        names = ("logits", "image_embeds", "pooler_output") if pooled else ("logits", "image_embeds")
        found["output"] = next((out[name] for name in names if out.get(name) is not None), None)
        return {name: array for name, array in found.items() if array is not None}

    def forward(self: Any, pixels: Any) -> Any:
        return next(iter(reversed(outputs(self, pixels).values())))

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    memory = LAYOUTS.get(f"{layout.name.removesuffix('_memory')}_memory", layout)
    checks = every_tensor_has_a_place(missing, [], "transformers")
    return Peer(f"transformers' {kind.__name__}", module, memory, outputs, checks)


# fields that override the architecture of a timm name, and timm's constructor arguments for them
_TIMM_SIZES = {
    "image_size": "img_size", "patch_size": "patch_size", "in_chans": "in_chans", "num_classes": "num_classes",
    "embed_dim": "embed_dim", "depth": "depth", "num_heads": "num_heads", "mlp_ratio": "mlp_ratio",
}  # fmt: skip


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
    changes = {
        argument: getattr(config, field)
        for field, argument in _TIMM_SIZES.items()
        if getattr(config, field) != getattr(preset, field) or field == "num_classes"
    }
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
        return {"features": _tokens(module.forward_features(pixels)), "output": module(pixels)}

    checks = every_tensor_has_a_place(result.missing_keys, result.unexpected_keys, "timm")
    return Peer(f"timm's {architecture}", module, get_layout(named), outputs, checks)
