"""The t2t_vit layout against the original T2T-ViT, restated in t2t_original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_flax
import vit_flax.convert
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
from parity_tests.random_weights import random_images, randomise
from parity_tests.t2t_original import PUBLISHED, OriginalT2TViT, TokenPerformer
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE
from vit_flax.parity.wrong_tensors import changed, exchanged, thirds_swapped

SMALL = {"img_size": 48, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.5, "token_dim": 16}
SMALL |= {"num_classes": 5, "qk_scale": 32**-0.5}
CASES = {
    "performer": {"tokens_type": "performer"},
    "transformer": {"tokens_type": "transformer"},
    "performer, one channel": {"tokens_type": "performer", "in_chans": 1, "img_size": 64},
    "transformer, biases": {"tokens_type": "transformer", "qkv_bias": True, "token_dim": 24},
    "transformer, scale of a head": {"tokens_type": "transformer", "qk_scale": None},
    "performer, no head": {"tokens_type": "performer", "num_classes": 0, "num_heads": 1},
}


def build(case):
    arguments = {**SMALL, **CASES[case]}
    theirs = randomise(OriginalT2TViT(**arguments))
    if arguments["tokens_type"] == "performer":  # features as large as the original's, and keys that they tell apart
        theirs.tokens_to_token.attention1.w.data *= 3
    told = {"num_heads": arguments["num_heads"], "qk_scale": arguments["qk_scale"]}
    side = arguments["img_size"]
    return theirs, told, random_images((side, side), arguments.get("in_chans", 3))


@pytest.mark.parametrize("case", CASES)
def test_agrees_in_float64_and_goes_back_bit_for_bit(case):
    theirs, told, images = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told)
    assert model.config.image_size == images.shape[1:3]
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))
    back = vit_flax.to_state_dict(model, params, layout="t2t_vit")
    assert_same_tensors(back, theirs.state_dict())
    load_strictly(theirs, back)


@pytest.mark.parametrize("case", ["performer", "transformer"])
def test_every_component_and_gradient_agrees_and_what_is_fixed_has_none(case):
    theirs, told, images = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told)
    assert_components_agree(theirs, model, params, "t2t_vit", images)
    trainable = vit_flax.to_state_dict(
        model, jax.tree.map(jnp.full_like, params, vit_flax.trainable_mask(model.config, params)), layout="t2t_vit"
    )
    for name, parameter in theirs.named_parameters():
        assert bool(trainable[name].all()) == parameter.requires_grad, name


def test_a_new_models_features_are_orthogonal_rows_of_length_sqrt_m():
    model = vit_flax.create_model("t2t_vit_7", image_size=32, embed_dim=32, depth=1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    for block in ("transformer1", "transformer2"):
        features = np.asarray(params["tokens_to_token"][block]["random_features"], np.float64)
        np.testing.assert_allclose(features @ features.T, 32 * np.eye(32), atol=32 * FLOAT32_ABSOLUTE)


@pytest.mark.parametrize("wrapper", ["state_dict", "state_dict_ema"])
def test_reads_the_training_checkpoint(wrapper, tmp_path):
    theirs, told, images = build("performer")
    tensors = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 3, "arch": "t2t_vit_7", wrapper: tensors}, tmp_path / "model.pth.tar")
    model, params = vit_flax.load(tmp_path / "model.pth.tar", **told)
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))


@pytest.mark.parametrize("size", [pytest.param(32, marks=pytest.mark.slow), 80])
def test_another_image_size_as_the_original_resizes(size):
    theirs, told, _ = build("performer")
    tensors = theirs.state_dict()
    grid = tensors["pos_embed"][:, 1:].unflatten(1, (3, 3)).movedim(-1, 1)
    grid = torch.nn.functional.interpolate(grid, (size // 16, size // 16), mode="bicubic").flatten(2).mT
    resized = torch.cat([tensors["pos_embed"][:, :1], grid], dim=1)
    theirs.pos_embed = torch.nn.Parameter(resized, requires_grad=False)
    model, params = vit_flax.from_state_dict(tensors, image_size=size, **told)
    images = random_images((size, size))
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))


def test_asks_for_the_scale():
    theirs, _, _ = build("performer")
    with pytest.raises(vit_flax.ConversionError, match=r"`qk_scale=NUMBER` \(None: head_dim"):
        vit_flax.from_state_dict(theirs.state_dict(), num_heads=4)


def test_refuses_convolutional_tokens_by_name():
    tensors = {"tokens_to_token.soft_split0.weight": torch.zeros(64, 3, 7, 7)}
    with pytest.raises(vit_flax.ConversionError, match="convolution"):
        vit_flax.from_state_dict(tensors, num_heads=4, qk_scale=None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", (48, 64)),
        ("image_size", 40),
        ("token_num_heads", 2),
        ("value_skip", True),
        ("token_input_scale", False),
        ("softsplit_kernels", (5, 3, 3)),
        ("token_qkv_bias", True),
        ("reg_tokens", 1),
    ],
)
def test_refuses_to_hold_what_the_original_cannot_compute(field, value):
    small = {"image_size": 48, "embed_dim": 32, "depth": 1, "num_heads": 4}
    model = vit_flax.create_model("t2t_vit_t_14", **{**small, field: value})
    with pytest.raises(vit_flax.ConversionError, match=field):
        vit_flax.to_state_dict(model, {}, layout="t2t_vit")


def test_the_tutorials_layout_refuses_a_performer():
    with pytest.raises(vit_flax.ConversionError, match="tokens_type='performer'"):
        vit_flax.to_state_dict(vit_flax.create_model("t2t_vit_7"), {}, layout="explained_t2t")


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_originals_parameters(preset):
    width, depth, heads, mlp_ratio, tokens_type, millions = PUBLISHED[preset]
    with torch.device("meta"):
        theirs = OriginalT2TViT(
            tokens_type=tokens_type, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=mlp_ratio
        )
    model = vit_flax.create_model(preset)
    count = sum(int(np.prod(shape)) for shape in vit_flax.models.shapes.expected_shapes(model).values())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    assert abs(count / 1e6 - millions) < 0.2  # as the repository rounds it
    assert model.config.qk_scale is None
    assert vit_flax.convert.get_layout("t2t_vit").refusals(model.config) == []


SHARED_MUTATIONS = {
    "swapped q and k in the backbone": thirds_swapped("blocks.0.attn.qkv"),
    "wrong epsilon": {"norm_eps": 1e-6},
    "tanh for erf": {"activation": "gelu_tanh"},
    "wrong heads": {"num_heads": 2},
    "scale of a head": {"qk_scale": None},
    "value skip in the backbone": {"value_skip": True},
    "class token after the tokens": changed("pos_embed", lambda a: np.roll(a, 1, axis=1)),
    "norms exchanged": exchanged("blocks.0.norm1", "blocks.0.norm2"),
    "windows column by column": changed(
        "attention1.norm1", lambda a: a.reshape(3, 7, 7).swapaxes(1, 2).reshape(a.shape)
    ),
}
MUTATIONS = {
    "performer": {
        **SHARED_MUTATIONS,
        "q, k, v for k, q, v": thirds_swapped("kqv"),
        "q and v swapped": thirds_swapped("kqv", 1, 2),
        "features of another draw": changed(".w", lambda a: a[::-1] * 1.01),
    },
    "transformer": {
        **SHARED_MUTATIONS,
        "scale of the output's width": {"token_input_scale": False},
        "swapped q and k in the tokens": thirds_swapped("attention1.attn.qkv"),
        "swapped k and v in the tokens": thirds_swapped("attention2.attn.qkv", 1, 2),
    },
}


@pytest.mark.parametrize(
    ("tokens_type", "mutation"), [(tokens_type, name) for tokens_type, names in MUTATIONS.items() for name in names]
)
def test_a_wrong_conversion_is_seen(tokens_type, mutation):
    theirs, told, images = build(tokens_type)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    change = MUTATIONS[tokens_type][mutation]
    model, params = wrongly_converted(tensors, change, **told)
    assert_differs(run_flax(model, params, images), run_torch(theirs, images))


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_another_epsilon_of_the_performer_is_seen(monkeypatch, epsilon):
    theirs, told, images = build("performer")
    monkeypatch.setattr("vit_flax.models.token_performer.EPSILON", epsilon)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told)
    assert_differs(run_flax(model, params, images), run_torch(theirs, images))


def test_the_performer_estimates_softmax_attention():
    # not a copy of a formula but its meaning: many features give what the exponentials of q k give
    generator = torch.Generator().manual_seed(0)
    block = randomise(TokenPerformer(12, 4), std=0.3)
    block.w.data = torch.randn(200_000, 4, generator=generator, dtype=torch.float64)
    q, k = (torch.randn(1, 5, 4, generator=generator, dtype=torch.float64) / 3 for _ in range(2))
    estimate = block.phi(q) @ block.phi(k).mT
    np.testing.assert_allclose(estimate.detach(), (q @ k.mT).exp(), rtol=0.05)
