"""Hugging Face's ViT: folders as transformers saves them, and timm's with its config.json."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.agreement import (
    assert_agrees,
    assert_components_agree,
    assert_differs,
    assert_same_tensors,
    load_strictly,
    run_flax,
    run_torch,
)
from parity_tests.peers import import_timm, import_transformers
from parity_tests.random_weights import random_images, randomise
from vit_flax import ConversionError
from vit_flax.parity.tolerances import ANOTHER_DEFINITION

transformers: Any = import_transformers()
SMALL: dict[str, Any] = {
    "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 40, "image_size": 32,
    "patch_size": 8, "num_labels": 5,
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and its progress bars


def peer(kind: str = "ViTForImageClassification", **changes):
    model = getattr(transformers, kind)(transformers.ViTConfig(**{**SMALL, **changes}))
    return randomise(model)


def answer(module, images, **options):
    out = run_torch(lambda x: module(x, **options), images)
    return out.logits if hasattr(out, "logits") else out.pooler_output


@pytest.mark.parametrize("disk", [True, False])
@pytest.mark.parametrize("kind", ["ViTForImageClassification", "ViTModel"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
        {"image_size": [16, 40], "patch_size": [8, 4], "num_channels": 1},
        {"hidden_act": "quick_gelu", "pooler_output_size": 7, "num_labels": 2},
    ],
)
def test_a_saved_folder_and_back(tmp_path, kind, changes, disk):
    module = peer(kind, **changes)
    module.save_pretrained(tmp_path, save_original_format=disk)
    model, params = vit_flax.load(tmp_path)
    images = random_images(model.config.image_size, model.config.in_chans)
    assert_agrees(run_flax(model, params, images), answer(module, images))
    hidden = run_torch(lambda x: (module.vit if hasattr(module, "vit") else module)(x).last_hidden_state, images)
    assert_agrees(run_flax(model, params, images, "features"), hidden)

    back = vit_flax.to_state_dict(model, params, "huggingface_vit_memory")
    assert_same_tensors(back, module.state_dict())
    load_strictly(module, back)
    vit_flax.save(tmp_path / "model.safetensors", model, params, "huggingface_vit")
    loaded, info = type(module).from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    assert not any(info[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_agrees(answer(loaded, images), answer(module, images))


def test_every_component_and_gradient():
    module = peer()
    config: dict[str, Any] = {"num_heads": 3, "image_size": 32, "norm_eps": 1e-12, "activation": "gelu"}
    model, params = vit_flax.from_state_dict(module.state_dict(), **config)
    assert_components_agree(Logits(module), model, params, "huggingface_vit_memory", random_images((32, 32)))


class Logits(torch.nn.Module):
    """The same modules under the same names, returning a tensor."""

    def __init__(self, module):
        super().__init__()
        self.vit, self.classifier = module.vit, module.classifier

    def forward(self, images):
        return self.classifier(self.vit(images).last_hidden_state[:, 0])


def test_what_tensors_cannot_tell_is_asked_for():
    with pytest.raises(ConversionError, match=r"do not tell num_heads, image_size, norm_eps, activation.*config.json"):
        vit_flax.from_state_dict(peer().state_dict())


@pytest.mark.parametrize("size", [(48, 48), (16, 16), (24, 56)])
def test_another_image_size(tmp_path, size):
    module = peer()
    module.save_pretrained(tmp_path)
    model, params = vit_flax.load(tmp_path, image_size=size)
    images = random_images(size)
    expected = answer(module, images, interpolate_pos_encoding=True)
    assert_agrees(run_flax(model, params, images), expected)
    for mode in ("bicubic_antialias", "bicubic_offset", "bicubic_corners", "bilinear", "zoom"):
        model, params = vit_flax.load(tmp_path, image_size=size, resample=mode)
        assert_differs(run_flax(model, params, images), expected, ANOTHER_DEFINITION)


def test_mutations_are_seen(tmp_path):
    module = peer()
    module.save_pretrained(tmp_path)
    images = random_images((32, 32))
    expected = answer(module, images)
    cases: list[dict[str, Any]] = [{"norm_eps": 1e-6}, {"activation": "gelu_tanh"}, {"num_heads": 2}]
    for changes in cases:
        model, params = vit_flax.load(tmp_path, **changes)
        assert_differs(run_flax(model, params, images), expected)
    state = dict(module.state_dict())
    name = "vit.layers.1.attention.{}_proj.weight"
    state[name.format("q")], state[name.format("k")] = state[name.format("k")], state[name.format("v")]
    model, params = vit_flax.from_state_dict(state, num_heads=3, image_size=32, norm_eps=1e-12, activation="gelu")
    assert_differs(run_flax(model, params, images), expected, ANOTHER_DEFINITION)


@pytest.mark.parametrize(("name", "value"), [("pooler_act", "gelu"), ("hidden_act", "gelu_10"), ("rotary", True)])
def test_a_config_that_asks_for_more_is_refused_by_name_unless_the_caller_knows_better(tmp_path, name, value):
    peer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    model, _ = vit_flax.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(ConversionError, match=f"{name}=|activation '{value}'"):
        vit_flax.load(tmp_path)
    assert vit_flax.load(tmp_path, config=model.config)[0].config == model.config


@pytest.mark.parametrize("arguments", [{}, {"global_pool": "avg", "init_values": 0.1}, {"num_classes": 0}])
def test_timm_as_saved_for_the_hub(tmp_path, arguments):
    timm: Any = import_timm()
    from timm.models import _hub

    arguments = {"depth": 2, "img_size": 48, **arguments}
    module = randomise(timm.create_model("vit_tiny_patch16_224", **arguments))
    _hub.save_for_hf(module, str(tmp_path), model_args={**arguments, "drop_path_rate": 0.1}, safe_serialization=True)
    model, params = vit_flax.load(tmp_path)
    images = random_images((48, 48))
    assert_agrees(run_flax(model, params, images), run_torch(module, images))
    assert_same_tensors(vit_flax.to_state_dict(model, params, "timm"), module.state_dict())
    assert np.shape(params["pos_embed"]) == (1, 10, 192)
