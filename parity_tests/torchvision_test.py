"""The torchvision layout against torchvision.models.vision_transformer.VisionTransformer."""

from functools import partial

import numpy as np
import pytest
import torch

import vit_flax
import vit_flax.pretrained
from parity_tests.agreement import (
    assert_agrees,
    assert_components_agree,
    assert_differs,
    assert_same_tensors,
    load_strictly,
    run_flax,
    run_torch,
    wrongly_converted,
)
from parity_tests.peers import import_torchvision
from parity_tests.random_weights import random_images, randomise
from vit_flax import presets
from vit_flax.parity.wrong_tensors import changed, exchanged, thirds_swapped
from vit_flax.presets.torchvision import TORCHVISION_MODELS

vision_transformer = import_torchvision().models.vision_transformer

CASES = {
    "square": {"image_size": 32, "patch_size": 8, "num_heads": 4},
    "another size": {"image_size": 72, "patch_size": 12, "num_heads": 2},
    "one patch a side": {"image_size": 16, "patch_size": 16, "num_heads": 8},
    "heads of the whole width": {"image_size": 32, "patch_size": 16, "num_heads": 1},
    "pre-logits": {"image_size": 32, "patch_size": 8, "num_heads": 4, "representation_size": 24},
    "epsilon of torch": {"image_size": 32, "patch_size": 8, "num_heads": 4, "eps": 1e-5},
}


def build(case, **more):
    arguments = {**CASES[case], **more}
    eps = arguments.pop("eps", 1e-6)
    shape = {"num_layers": 2, "hidden_dim": 32, "mlp_dim": 80, "num_classes": 7}
    norm = partial(torch.nn.LayerNorm, eps=eps)
    return randomise(vision_transformer.VisionTransformer(**shape, **arguments, norm_layer=norm)), eps


@pytest.mark.parametrize("case", CASES)
def test_agrees_in_float64_and_goes_back_bit_for_bit(case):
    theirs, eps = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), num_heads=CASES[case]["num_heads"], norm_eps=eps)
    size = CASES[case]["image_size"]
    images = random_images((size, size))
    assert model.config.image_size == (size, size)
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))

    back = vit_flax.to_state_dict(model, params, layout="torchvision")
    assert_same_tensors(back, theirs.state_dict())
    load_strictly(theirs, back)


@pytest.mark.parametrize("case", ["square", "pre-logits"])
def test_every_component_and_gradient_agrees(case):
    theirs, _ = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), num_heads=4)
    assert_components_agree(theirs, model, params, "torchvision", random_images((32, 32)))


@pytest.mark.parametrize("size", [24, 56])
def test_another_image_size_as_torchvision_resizes(size):
    tensors = build("square")[0].state_dict()
    resized = vision_transformer.interpolate_embeddings(size, 8, dict(tensors))
    theirs = build("square", image_size=size)[0]
    theirs.load_state_dict(resized)
    model, params = vit_flax.from_state_dict(tensors, num_heads=4, image_size=size)
    images = random_images((size, size))
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))


def test_reads_the_names_before_torchvision_0_13():
    theirs, _ = build("square")
    older = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    assert any("linear_2" in name for name in older)
    model, params = vit_flax.from_state_dict(older, num_heads=4)
    images = random_images((32, 32))
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))
    assert_same_tensors(vit_flax.to_state_dict(model, params, layout="torchvision"), theirs.state_dict())


def test_names_a_tensor_that_is_there_under_both_names():
    tensors = build("square")[0].state_dict()
    name = "encoder.layers.encoder_layer_0.mlp.linear_1.weight"
    with pytest.raises(vit_flax.ConversionError, match=r"mlp\.linear_1\.weight"):
        vit_flax.from_state_dict({**tensors, name: torch.zeros(80, 32)}, num_heads=4)


def test_asks_for_the_heads():
    with pytest.raises(vit_flax.ConversionError, match="num_heads"):
        vit_flax.from_state_dict(build("square")[0].state_dict())


def test_refuses_a_convolutional_stem():
    stem = [vision_transformer.ConvStemConfig(8, 3, 2), vision_transformer.ConvStemConfig(8, 3, 2)]
    theirs = build("square", conv_stem_configs=stem)[0]
    with pytest.raises(vit_flax.ConversionError, match="conv_stem_configs"):
        vit_flax.from_state_dict(theirs.state_dict(), num_heads=4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", (32, 48)),
        ("activation", "gelu_tanh"),
        ("global_pool", "avg"),
        ("value_skip", True),
        ("reg_tokens", 2),
    ],
)
def test_refuses_to_hold_what_torchvision_cannot_compute(field, value):
    arguments = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4, "num_classes": 3}
    model = vit_flax.create_model("torchvision_vit_b_16", **{**arguments, field: value})
    with pytest.raises(vit_flax.ConversionError, match=field):
        vit_flax.to_state_dict(model, {}, layout="torchvision")


PRESETS = [name for name in TORCHVISION_MODELS if "." in name]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_published_models(preset):
    architecture, entry = preset.removeprefix("torchvision_").split(".")
    family = "_".join(architecture.split("_")[:3])  # vit_b_16
    published = vision_transformer.__dict__["_".join(["ViT", *family.upper().split("_")[1:], "Weights"])]
    weights = published[entry.upper()]
    ours, transforms = presets.get_preset(preset), weights.transforms()

    shapes = vit_flax.models.shapes.expected_shapes(vit_flax.create_model(preset))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == weights.meta["num_params"]
    with torch.device("meta"):
        theirs = getattr(vision_transformer, family)(image_size=weights.meta["min_size"][0])
    assert ours.config.num_heads == theirs.encoder.layers.encoder_layer_0.num_heads
    assert ours.config.norm_eps == theirs.encoder.ln.eps
    assert ours.config.image_size == weights.meta["min_size"]

    assert ours.source == weights.url
    assert (ours.mean, ours.std) == (tuple(transforms.mean), tuple(transforms.std))
    assert ours.crop_pct == transforms.crop_size[0] / transforms.resize_size[0]
    assert ours.interpolation == transforms.interpolation.value


MUTATIONS = {
    "swapped q and k": thirds_swapped("in_proj"),
    "swapped k and v": thirds_swapped("in_proj", 1, 2),
    "wrong epsilon": {"norm_eps": 1e-5},
    "tanh for erf": {"activation": "gelu_tanh"},
    "wrong heads": {"num_heads": 2},
    "class token after the patches": changed("pos_embedding", lambda a: np.roll(a, 1, axis=1)),
    "patches column by column": changed("conv_proj.weight", lambda a: a.swapaxes(2, 3)),
    "channels reversed": changed("conv_proj.weight", lambda a: a[:, ::-1]),
    "norms exchanged": exchanged("ln_1", "ln_2"),
    "transposed projection": changed("out_proj.weight", np.transpose),
    "value skip": {"value_skip": True},
    "mean of the patches": {"global_pool": "avg"},
    "another scale": {"qk_scale": 32**-0.5},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_conversion_is_seen(mutation):
    theirs, _ = build("square")
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    change = MUTATIONS[mutation]
    model, params = wrongly_converted(tensors, change, num_heads=4)
    images = random_images((32, 32))
    assert_differs(run_flax(model, params, images), run_torch(theirs, images))
