"""Files of transformers 4's Flax models (flax_model.msgpack), judged by its torch models of the same weights."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from flax import serialization
from flax.traverse_util import unflatten_dict

import vit_flax
from parity_tests.peers import import_transformers
from parity_tests.random_weights import randomise
from vit_flax.parity.tolerances import FLOAT32_LOGITS

transformers = import_transformers()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
CASES = {
    "vit": ("ViTForImageClassification", {**SIZES, "num_labels": 3}),
    "vit, no classifier": ("ViTModel", SIZES),
    "clip": ("CLIPVisionModel", SIZES),
    "beit": ("BeitForImageClassification", {**SIZES, "num_labels": 3, "use_relative_position_bias": True}),
    "dinov2": (
        "Dinov2ForImageClassification",
        {**{k: v for k, v in SIZES.items() if "inter" not in k}, "num_labels": 3},
    ),
}


def flax_tree(tensors: dict[str, torch.Tensor]) -> dict:
    """Returns what a Flax model has for a torch model's tensors: flax.linen's own names and axes of each layer."""
    flat = {}
    for name, tensor in tensors.items():
        array = tensor.numpy()
        if name.endswith(("position_ids", "relative_position_index")):
            continue
        if name.endswith(".weight"):
            module = name.removesuffix(".weight")
            if module.endswith("position_embedding"):
                name = f"{module}.embedding"
            elif re.search(r"norm\w*$", module):
                name = f"{module}.scale"
            else:
                name = f"{module}.kernel"
                array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        flat[tuple(name.split("."))] = np.ascontiguousarray(array)
    return unflatten_dict(flat)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_a_flax_model(case: str, tmp_path) -> None:
    from safetensors.torch import load_file

    name, sizes = CASES[case]
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**sizes)).eval()
    randomise(model)
    model.float()
    model.save_pretrained(tmp_path)
    tree = flax_tree(load_file(tmp_path / "model.safetensors"))
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.to_bytes(tree))
    with torch.no_grad():
        out = model(torch.from_numpy(images))
    expected = (out.logits if "logits" in out else out.pooler_output).numpy()
    flax, params = vit_flax.load(tmp_path)
    found = np.asarray(flax.apply({"params": params}, images.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(found, expected, **FLOAT32_LOGITS)
    config = (tmp_path / "config.json").read_text()
    again = vit_flax.from_state_dict({"params": tree}, config=json.loads(config))  # FlaxViTModel.params
    np.testing.assert_array_equal(np.asarray(again[0].apply({"params": again[1]}, images.transpose(0, 2, 3, 1))), found)
