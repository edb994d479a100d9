"""Compares intermediate features (`forward_intermediates`) and attention weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vit_flax import attention_weights as maps
from vit_flax.models import VisionTransformer
from vit_flax.parity.compare import Row, Subject, compare_arrays
from vit_flax.parity.figures import attention_weights
from vit_flax.parity.record import record_torch

METHOD = "forward_intermediates"


def compare_intermediates(subject: Subject, model: VisionTransformer, images: np.ndarray) -> list[Row]:
    """Compares every block of the tutorial's ViT in float64: patch and prefix tokens, both normed, attention weights.

    Args:
        subject: the pair of models.
        model: the Flax model of the pair.
        images: (B, C, H, W).
    """
    import torch

    module, depth = subject.torch_module, model.config.depth
    first, inputs = model.config.num_prefix_tokens, jnp.asarray(subject.to_flax(images))

    def ours(params: PyTree, inputs: jax.Array, norm: bool) -> Any:
        asked = {"norm": norm, "return_prefix_tokens": True, "output_fmt": "NLC", "intermediates_only": True}
        return model.apply({"params": params}, inputs, list(range(depth)), **asked, method=METHOD)

    both = jax.jit(lambda params, inputs: [ours(params, inputs, norm) for norm in (False, True)])
    plain, normed = both(subject.params, inputs)
    weights = maps.attention_maps(model, subject.params, inputs)
    names = [f"backbone.blocks.{index}" for index in range(depth)]
    with torch.no_grad():
        blocks = record_torch(module, torch.from_numpy(images), names)[1]
        norm = module.get_submodule("backbone.norm")
        blocks_normed = {name: norm(torch.from_numpy(block)).numpy() for name, block in blocks.items()}
    rows = []
    for index, name in enumerate(names):
        theirs, theirs_normed = blocks[name], blocks_normed[name]
        arrays = {
            "": (theirs[:, first:], plain[index][0]),
            ":prefix": (theirs[:, :first], plain[index][1]),
            ":norm": (theirs_normed[:, first:], normed[index][0]),
            ":prefix:norm": (theirs_normed[:, :first], normed[index][1]),
            ":attention": (attention_weights(module, images, model.config, index), weights[index]),
        }
        for kind, (their_array, our_array) in arrays.items():
            flax_name = f"attention_maps {index}" if kind == ":attention" else f"{METHOD} {index}{kind}"
            rows.append(compare_arrays(name + kind, flax_name, their_array, np.asarray(our_array)))
    return rows
