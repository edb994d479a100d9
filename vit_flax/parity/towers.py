"""Compares a two-tower model with transformers' own: components of both towers, embeddings, logits."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vit_flax.config import TwoTowersConfig
from vit_flax.convert import ConversionError, Layout, get_layout
from vit_flax.models import TwoTowers
from vit_flax.parity.compare import Subject, compare_components, expand_pairs, require_x64
from vit_flax.parity.float64 import computed_in_float64
from vit_flax.parity.inputs import DrawnImages, DrawnTexts, draw_images, draw_texts
from vit_flax.parity.other_models import every_tensor_has_a_place, left_in_float64
from vit_flax.parity.outputs import compare_outputs
from vit_flax.parity.peers import import_peer
from vit_flax.parity.report import Check, Report
from vit_flax.parity.small_mutation import SmallMutation, draw_parameters
from vit_flax.parity.transformers_models import load_transformers
from vit_flax.pretrained import from_state_dict
from vit_flax.reading import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# transformers' classes by the model_type of config.json, without 'Model'
KINDS = {"clip": "CLIP", "metaclip_2": "MetaClip2", "siglip": "Siglip", "siglip2": "Siglip2"}
HIDING = ("clip", "metaclip_2", "siglip2")  # tokenisers that return an attention mask
OUTPUTS = ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text")
_SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
_END = 60


def compare_towers(reading: Reading, seed: int = 0) -> Report:
    """Compares a checkpoint of both towers with transformers' model of the same weights, in float64 and float32.

    Raises:
        ConversionError: the checkpoint cannot be loaded, or transformers has no such model.
        ImportError: transformers is not installed.
    """
    start = time.monotonic()
    model, params = reading.build()
    assert isinstance(model, TwoTowers)
    layout, checkpoint = reading.layout, reading.checkpoint
    if not layout.is_transformers or layout.config_file is None:
        raise ConversionError(
            f"layout {layout.name!r} of both towers is none of transformers': `tower='image'` compares the image tower"
        )
    beside = checkpoint.config or {}
    values: dict[str, Any] = dict(beside if beside.get("model_type") in KINDS else layout.config_file(model.config))
    kind = _model_class(values["model_type"])
    module, missing = load_transformers({name: checkpoint.read(name) for name in checkpoint.shapes}, kind, values)
    title = f"{checkpoint.source} ({layout.name}) against transformers' {kind.__name__}"
    checks = every_tensor_has_a_place(missing, [], "transformers")
    return _report(title, module, values["model_type"], model, params, layout, checks, start, seed)


def compare_small_towers(case: str, mutation: SmallMutation | None = None, seed: int = 0) -> Report:
    """Compares a small transformers model of random weights with its Flax conversion, under a mutation if given.

    Raises:
        ImportError: transformers is not installed.
    """
    start = time.monotonic()
    module = small_towers(case, seed)
    tensors: Any = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    told: dict[str, Any] = {"config": module.config.to_dict()}
    if mutation is not None:
        tensors, told = mutation.of(tensors, told)
    layout = get_layout(f"huggingface_{'clip' if case == 'metaclip_2' else case}_with_text")
    model, params = from_state_dict(tensors, layout.name, **told)
    title = f"A small {type(module).__name__} of transformers with random weights, and the same model in Flax"
    report = _report(title, module, case, model, params, layout, [], start, seed)
    report.mutation = mutation and mutation.name
    return report


def small_towers(case: str, seed: int = 0) -> PreTrainedModel:
    """Builds a small transformers model of random weights, in float64; `case` is a model_type of `KINDS`."""
    text = {**_SMALL, "vocab_size": _END + 4, "max_position_embeddings": 9, "eos_token_id": _END, "bos_token_id": 1}
    sizes = {"num_patches": 9} if case == "siglip2" else {"image_size": 12}
    more = {} if "siglip" in case else {"projection_dim": 20}
    kind = _model_class(case)
    config = kind.config_class(
        text_config={**text, "pad_token_id": 0, **more}, vision_config={**_SMALL, "patch_size": 4, **sizes}, **more
    )
    module: PreTrainedModel = kind(config).double().eval()
    draw_parameters(module, seed)
    return module


def _model_class(case: str) -> Any:
    transformers = import_peer("transformers")
    transformers.utils.logging.disable_progress_bar()
    return getattr(transformers, f"{KINDS[case]}Model")


def _report(
    title: str, module: Any, case: str, model: TwoTowers, params: PyTree, layout: Layout, checks: list[Check],
    start: float, seed: int,
) -> Report:  # fmt: skip
    require_x64()
    config: TwoTowersConfig = model.config
    images, texts = draw_images(config.image, seed), draw_texts(config.text, case in HIDING, seed)
    run = _recorded(module, images, texts)
    subject = Subject(
        module,
        lambda p, pixels: cast(jax.Array, _apply(model, p, pixels, images, texts)["logits_per_image"]),
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params),
        expand_pairs(layout.components(config), module),
        to_flax=images.to_flax,
    )
    report = Report(title, config.to_dict(), checks=checks)
    with computed_in_float64(module) as kept:
        report.checks += left_in_float64(kept)
        report.sections["components"] = compare_components(subject, images.pixels)
        compute = partial(_flax_outputs, model, images, texts)
        names = {name: name for name in OUTPUTS}
        report.sections["outputs"] = compare_outputs(run, module, compute, subject.params, images, names)
    report.seconds = time.monotonic() - start
    return report


def _recorded(module: Any, images: DrawnImages, texts: DrawnTexts) -> Any:
    """Makes the module a function of pixels alone, in place, and returns the function that gives all its outputs."""
    import torch

    kind = type(module)
    tokens = {"input_ids": torch.from_numpy(texts.tokens)}
    if texts.mask is not None:
        tokens["attention_mask"] = torch.from_numpy(texts.mask.astype(np.int64))

    def run(self: Any, pixels: Any) -> Any:
        return kind.forward(self, pixel_values=pixels, **tokens, **images.torch_arguments())

    def forward(self: Any, pixels: Any) -> Any:
        return run(self, pixels).logits_per_image

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return run


def _apply(model: TwoTowers, params: PyTree, pixels: Any, images: DrawnImages, texts: DrawnTexts) -> dict[str, Any]:
    padding: dict[str, Any] = images.flax_arguments
    found: Any = model.apply({"params": params}, pixels, texts.tokens, texts.mask, **padding)
    return dict(zip(("logits_per_image", "logits_per_text"), found, strict=True))


def _flax_outputs(
    model: TwoTowers, images: DrawnImages, texts: DrawnTexts, params: PyTree, pixels: Any
) -> dict[str, Any]:
    variables = {"params": params}
    padding: dict[str, Any] = images.flax_arguments
    return {
        **_apply(model, params, pixels, images, texts),
        "image_embeds": model.apply(variables, pixels, **padding, method="encode_images"),
        "text_embeds": model.apply(variables, texts.tokens, texts.mask, method="encode_texts"),
    }
