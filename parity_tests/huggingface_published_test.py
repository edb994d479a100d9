"""A checkpoint in the form of Hugging Face's hub (DINOv2 ViT-S/14, its published config.json), loaded in every way.

The weights are random, of the published model's shapes. For another image size transformers resizes the position table
in float32 whatever the model's dtype, and agrees with exact arithmetic up to that rounding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vit_flax
from parity_tests.peers import import_transformers
from parity_tests.random_weights import random_images
from vit_flax.parity import compare_arrays
from vit_flax.parity.tolerances import FLOAT32_EPS

transformers = import_transformers()

CONFIG = {
    "architectures": ["Dinov2Model"], "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0, "hidden_size": 384, "image_size": 518, "initializer_range": 0.02,
    "layer_norm_eps": 1e-06, "layerscale_value": 1.0, "mlp_ratio": 4, "model_type": "dinov2", "num_attention_heads": 6,
    "num_channels": 3, "num_hidden_layers": 12, "patch_size": 14, "qkv_bias": True, "torch_dtype": "float32",
    "transformers_version": "4.32.0.dev0", "use_swiglu_ffn": False,
}  # fmt: skip
PLAIN = vit_flax.ViTConfig(embed_dim=384, num_heads=6, patch_size=(14, 14), image_size=(518, 518), num_classes=0)
FIELDS = {"num_heads": 6, "norm_eps": 1e-6, "activation": "gelu"}


@pytest.fixture(scope="module", params=[0, 4], ids=["dinov2", "registers"])
def published(request, tmp_path_factory):
    """Returns the folder, the number of registers, the torch model in float32."""
    torch.manual_seed(0)
    registers = request.param
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    values = {**CONFIG, "architectures": [f"{name}Model"]}
    values |= {"model_type": "dinov2_with_registers", "num_register_tokens": 4} if registers else {}
    theirs = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**values)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("hub")
    theirs.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))
    tensors = load_file(folder / "model.safetensors")
    assert {"embeddings.mask_token", "encoder.layer.11.attention.attention.query.weight"} <= tensors.keys()
    (folder / "alone").mkdir()
    prefix = "dinov2_with_registers." if registers else "dinov2."
    torch.save(tensors, folder / "alone" / "pytorch_model.bin")
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, folder / "alone" / "prefixed.bin")
    return folder, registers, theirs


def ways(folder, registers) -> Iterator[tuple[Any, Any]]:
    preset = "facebook/dinov2-with-registers-small" if registers else "facebook/dinov2-small"
    alone, config = folder / "alone" / "pytorch_model.bin", json.loads((folder / "config.json").read_text())
    tokens = {"reg_tokens": 4, "no_embed_reg": True, "mask_token": True} if registers else {}
    yield folder, {}
    yield folder / "model.safetensors", {}
    yield folder, {"config": preset}
    yield alone, {"config": preset}
    yield alone, {"config": config}
    yield alone, {"config": PLAIN.replace(init_values=1.0, **tokens)}
    yield alone, {**FIELDS, "image_size": 518}
    yield folder / "alone" / "prefixed.bin", {"config": preset}
    if not registers:
        yield alone, {"config": "vit_small_patch14_dinov2.lvd142m"}


def test_every_way_gives_the_same_model(published):
    folder, registers, theirs = published
    state = theirs.state_dict()
    expected, params = None, {}
    for path, arguments in ways(folder, registers):
        model, params = vit_flax.load(path, **arguments)
        params = {name: leaf for name, leaf in params.items() if name != "mask_token"}  # evaluation does not read it
        kept = (model.config.replace(init_values=1.0, mask_token=True), params)
        expected = expected or kept
        assert kept[0] == expected[0], arguments
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), kept[1], expected[1])), arguments
    assert params["blocks_3"]["attn"]["qkv"]["kernel"].dtype == np.float32
    position = state["embeddings.position_embeddings"].numpy()
    assert np.array_equal(np.asarray(params["pos_embed"]), position)


def _compare(theirs, model, params, images) -> list[Any]:
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    double = type(theirs)(theirs.config).double().eval()
    double.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        in32, in64 = theirs(pixels.float()), double(pixels)
    run = jax.jit(lambda p, x: (model.apply({"params": p}, x, method="features"), model.apply({"params": p}, x)))
    ours32 = run(params, images.astype(np.float32))
    ours64 = run(jax.tree.map(lambda leaf: leaf.astype(np.float64), params), images)
    return [
        compare_arrays(
            name, name, in64[name].numpy(), np.asarray(b), in32[name].double().numpy(), np.asarray(c, np.float64)
        )
        for name, b, c in zip(("last_hidden_state", "pooler_output"), ours64, ours32, strict=True)
    ]


def test_features_agree_at_224_pixels(published):
    folder, _, theirs = published
    model, params = vit_flax.load(folder, image_size=224)
    for row in _compare(theirs, model, params, random_images((224, 224), batch=2)):
        assert row.relative_difference < FLOAT32_EPS / 2  # transformers resizes in float32
        assert row.flax_float32_error <= 4 * row.torch_float32_error


@pytest.mark.slow
def test_features_agree_at_518_pixels(published):
    folder, _, theirs = published
    model, params = vit_flax.load(folder)
    rows = _compare(theirs, model, params, random_images((518, 518), batch=1))
    assert all(row.agrees for row in rows), rows
