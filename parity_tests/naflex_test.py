"""SigLIP 2's NaFlex against transformers: padded patches of images of several aspect ratios."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.agreement import assert_agrees, assert_differs, load_strictly, wrongly_converted
from parity_tests.peers import import_transformers
from parity_tests.random_weights import random_images, randomise
from vit_flax.parity.tolerances import ANOTHER_DEFINITION, FLOAT64_RELATIVE
from vit_flax.parity.wrong_tensors import changed, exchanged, thirds_swapped
from vit_flax.preprocessing.naflex import naflex_size, to_patches

transformers = import_transformers()

TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_patches": 16,
    "patch_size": 4,
}  # fmt: skip
CASES = {
    "pooled": ("Siglip2VisionModel", TOWER),
    "no head": ("Siglip2VisionModel", {**TOWER, "vision_use_head": False, "hidden_act": "gelu"}),
    "classifier": (
        "Siglip2ForImageClassification",
        {"vision_config": {**TOWER, "vision_use_head": False}, "num_labels": 3},
    ),
}
GRIDS = [(4, 4), (2, 7), (6, 3), (1, 5)]  # 20 patches at most, the table's grid among them
INPUTS = to_patches([random_images((4 * h, 4 * w), seed=h)[0] for h, w in GRIDS], 4, 20)


pytestmark = pytest.mark.usefixtures("_resized_in_float64")


def build(case):
    kind, arguments = CASES[case]
    kind = getattr(transformers, kind)
    return randomise(kind(kind.config_class(**arguments)))


def outputs(theirs):
    patches, mask, grids = INPUTS
    with torch.no_grad():
        out = theirs(torch.from_numpy(patches), torch.from_numpy(mask).int(), torch.from_numpy(grids).long())
    pooled = out.get("logits") if out.get("logits") is not None else out.get("pooler_output")
    return out.get("last_hidden_state"), pooled


def run(model: Any, params: Any, method: str = "__call__") -> Any:
    apply = jax.jit(lambda p, *inputs: model.apply({"params": p}, *inputs, method=method))
    return apply(params, *INPUTS)


def assert_same(model, params, theirs):
    hidden, pooled = outputs(theirs)
    if hidden is not None:
        assert_agrees(run(model, params, "features"), hidden)
    if pooled is not None:
        assert_agrees(run(model, params), pooled)


@pytest.mark.parametrize("case", CASES)
def test_files_and_memory_are_read_and_written_back(case, tmp_path):
    theirs = build(case)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = vit_flax.load(tmp_path / "theirs")
    assert_same(model, params, theirs)
    vit_flax.save(tmp_path / "ours", model, params, layout="huggingface_siglip2")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in again.state_dict().items())
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=config)
    assert_same(model, params, theirs)
    load_strictly(theirs, vit_flax.to_state_dict(model, params, "huggingface_siglip2_memory"))
    told = {"num_heads": 4, "norm_eps": 1e-6, "activation": model.config.activation, "patch_size": 4, "in_chans": 3}
    assert vit_flax.from_state_dict(theirs.state_dict(), **told)[0].config == model.config


MUTATIONS = {
    "swapped q and k": exchanged("q_proj", "k_proj"),
    "erf for tanh": {"activation": "gelu"},
    "wrong epsilon": {"norm_eps": 1e-5},
    "channels first in a patch": changed(
        "patch_embedding.weight", lambda a: a.reshape(-1, 4, 4, 3).transpose(0, 3, 1, 2).reshape(a.shape)
    ),
    "q and k of the head swapped": thirds_swapped("head.attention.in_proj"),
    "mean for attention": {"global_pool": "avg"},
    "positions moved": changed("position_embedding.weight", lambda a: np.roll(a, 1, axis=0)),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_conversion_is_seen(mutation):
    theirs = build("pooled")
    tensors: Any = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    change: Any = MUTATIONS[mutation]
    config = theirs.config.to_dict()
    model, params = wrongly_converted(tensors, change, config=config)
    assert_differs(run(model, params), outputs(theirs)[1])


def test_padding_and_mask_matter_as_in_transformers():
    theirs = build("pooled")
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict())
    patches, mask, grids = INPUTS
    out = run(model, params)
    noise = np.where(mask[..., None], patches, 7.0)
    assert_agrees(model.apply({"params": params}, noise, mask, grids), out)
    unmasked = model.apply({"params": params}, patches, np.ones_like(mask), grids)
    assert_differs(unmasked, out, ANOTHER_DEFINITION)
    swapped = model.apply({"params": params}, patches, mask, grids[:, ::-1])
    assert_differs(swapped, out, ANOTHER_DEFINITION)
    # images of the table's own size need neither
    images = random_images((16, 16))
    inputs = to_patches(list(images), 4, 16)
    assert_agrees(model.apply({"params": params}, images), model.apply({"params": params}, *inputs))


def test_patches_and_sizes_are_transformers():
    module = transformers.models.siglip2.image_processing_siglip2
    for size in ((480, 640), (17, 400), (1000, 1000), (3, 5)):
        for limit in (16, 256, 729):
            assert naflex_size(*size, 16, limit) == module.get_image_size_for_max_num_patches(*size, 16, limit)
    image = random_images((8, 12))[0]
    expected = module.convert_image_to_patches(torch.from_numpy(image.transpose(2, 0, 1).copy()), 4)
    assert np.array_equal(to_patches([image], 4, 6)[0][0], expected.numpy())
    with pytest.raises(ValueError, match="not cut into 1 to 5 patches"):
        to_patches([image], 4, 5)


def test_gradients_are_torchs():
    theirs = build("pooled")
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict())
    patches, mask, grids = INPUTS
    out = theirs(torch.from_numpy(patches), torch.from_numpy(mask).int(), torch.from_numpy(grids).long())
    out.pooler_output.square().sum().backward()
    gradient = jax.grad(lambda p: jnp.square(jnp.asarray(model.apply({"params": p}, *INPUTS))).sum())(params)
    ours = vit_flax.to_state_dict(model, gradient, "huggingface_siglip2_memory")
    largest = max(float(p.grad.norm()) for p in theirs.parameters())
    for name, parameter in theirs.named_parameters():
        assert np.linalg.norm(ours[name] - parameter.grad.numpy()) <= FLOAT64_RELATIVE * largest, name


def test_hidden_states_are_transformers():
    theirs = build("no head")
    patches, mask, grids = INPUTS
    with torch.no_grad():
        inputs = torch.from_numpy(patches), torch.from_numpy(mask).int(), torch.from_numpy(grids).long()
        states = theirs(*inputs, output_hidden_states=True).hidden_states
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict())
    asked: Any = {"mask": mask, "spatial_shapes": grids, "output_fmt": "NLC", "intermediates_only": True}
    ours: Any = model.apply({"params": params}, patches, **asked, method="forward_intermediates")
    for mine, other in zip(ours, states[1:], strict=True):
        assert_agrees(mine, other)
