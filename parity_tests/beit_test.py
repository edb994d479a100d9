"""timm's Beit: components, gradients, relative position bias at other grids, wrong conversions, the original's file."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
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
    wrongly_converted,
)
from parity_tests.peers import import_timm, import_transformers
from parity_tests.random_weights import random_images, randomise
from vit_flax.convert import ConversionError, Wish, from_mapping, get_layout
from vit_flax.models.resample import resize_rel_pos_bias
from vit_flax.parity.tolerances import ANOTHER_DEFINITION
from vit_flax.parity.wrong_tensors import Wrong, changed, exchanged, thirds_swapped
from vit_flax.reading import read_model

timm = import_timm()

SIZE = (48, 32)
PATCH = {"patch_size": 8}
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5, **PATCH}
CASES = {
    "a table for each block": {},
    "one for all": {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "init_values": None},
    "both, and places": {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": True, "qkv_bias": False},
    "class token": {"global_pool": "token", "use_fc_norm": False},
}
TOLD = {"num_heads": 4, "image_size": SIZE}


def build(case: str = "a table for each block", size=SIZE):
    """Returns timm's model of a case with random weights in float64."""
    arguments = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1, **SMALL, **CASES[case]}
    return randomise(timm.models.beit.Beit(img_size=size, **arguments))


@pytest.mark.parametrize("case", CASES)
def test_every_component_and_gradient_agrees(case):
    theirs = build(case)
    pool: dict[str, Any] = {"global_pool": "token"} if case == "class token" else {}
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **TOLD, **pool)
    assert_components_agree(theirs, model, params, "beit", random_images(SIZE))
    load_strictly(theirs, vit_flax.to_state_dict(model, params))


MUTATIONS: dict[str, Wrong] = {
    "swapped q and k": thirds_swapped("attn.qkv"),
    "biases exchanged": exchanged("q_bias", "v_bias"),
    "LayerScale dropped": changed("gamma_", np.ones_like),
    "wrong epsilon": {"norm_eps": 1e-5},
    "tanh for erf": {"activation": "gelu_tanh"},
    "steps the other way": changed("bias_table", lambda a: np.concatenate([a[-4::-1], a[-3:]])),
    "class token's rows exchanged": changed("bias_table", lambda a: np.concatenate([a[:-3], a[[-2, -3, -1]]])),
    "class token's row first": changed("bias_table", lambda a: np.roll(a, 1, axis=0)),
    "tables of other blocks": exchanged("blocks.0.attn.relative", "blocks.1.attn.relative"),
    "wrong heads": changed("bias_table", lambda a: a[:, ::-1]),
    "class token": {"global_pool": "token"},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_conversion_is_seen(mutation):
    theirs, images, change = build(), random_images(SIZE), MUTATIONS[mutation]
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    model, params = wrongly_converted(tensors, change, **TOLD)
    assert_differs(run_flax(model, params, images), run_torch(theirs, images))


def test_the_original_file_has_indices_and_a_mask_token():
    theirs = build("both, and places")
    tensors = theirs.state_dict()
    index = theirs.blocks[0].attn.relative_position_index
    original = {
        **tensors,
        "mask_token": torch.full((1, 1, 32), 0.5).double(),
        **{f"blocks.{i}.attn.relative_position_index": index for i in range(2)},
        "rel_pos_bias.relative_position_index": index,
    }
    model, params = vit_flax.from_state_dict({"model": original}, **TOLD)
    assert model.config.mask_token
    assert_agrees(run_flax(model, params, random_images(SIZE)), run_torch(theirs, random_images(SIZE)))
    back = vit_flax.to_state_dict(model, params)
    assert_same_tensors(back, {**tensors, "mask_token": original["mask_token"]})


@pytest.fixture
def in_double(monkeypatch):
    """Makes timm resize in the precision of its tables: its rule is judged, not its rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("size", [(32, 32), (80, 80), (24, 56)])
@pytest.mark.parametrize("case", ["a table for each block", "both, and places"])
@pytest.mark.usefixtures("in_double")
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")  # by timm
def test_tables_are_resized_as_timm_does(case, size):
    theirs = build(case, (48, 48))
    tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    theirs.set_input_size(size)
    model, params = vit_flax.from_state_dict(tensors, num_heads=4, image_size=size)
    expected = run_torch(theirs, random_images(size))
    assert_agrees(run_flax(model, params, random_images(size)), expected)
    if case == "a table for each block":
        model, params = vit_flax.from_state_dict(tensors, num_heads=4, image_size=size, resample="bilinear")
        assert_differs(run_flax(model, params, random_images(size)), expected, ANOTHER_DEFINITION)


@pytest.mark.usefixtures("in_double")
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")  # by timm
def test_tables_that_are_not_square_need_their_grid():
    theirs = build()
    tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    theirs.set_input_size((32, 64))
    with pytest.raises(ConversionError, match="relative_position_bias_table is"):
        vit_flax.from_state_dict(tensors, num_heads=4, image_size=(32, 64))
    model, params = vit_flax.from_state_dict(tensors, num_heads=4, image_size=(32, 64), source_grid=(6, 4))
    assert_agrees(run_flax(model, params, random_images((32, 64))), run_torch(theirs, random_images((32, 64))))


@pytest.mark.parametrize("size", [(32, 32), (80, 80), (24, 56)])
def test_tables_are_resized_as_hugging_face_does(size):
    transformers = import_transformers()
    config = transformers.BeitConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=48, patch_size=8,
        use_relative_position_bias=True, use_shared_relative_position_bias=True, use_absolute_position_embeddings=True,
    )  # fmt: skip
    theirs = randomise(transformers.BeitModel(config))
    images = random_images(size)
    expected = run_torch(theirs, images).pooler_output
    sized = {"config": config.to_dict(), "image_size": size}
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **sized)
    assert_agrees(run_flax(model, params, images), expected)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **sized, resample="bicubic")
    assert_differs(run_flax(model, params, images), expected, ANOTHER_DEFINITION)


def test_what_becomes_of_tables_is_told():
    checkpoint = from_mapping(build(size=(48, 48)).state_dict())
    told = read_model(checkpoint, Wish(overrides={"num_heads": 4, "image_size": (32, 32)})).to_dict()
    assert not told["problems"]
    fates = [row["fate"] for row in told["tensors"] if "table" in row["name"]]
    assert len(fates) == 2
    assert all("resized 6x6 -> 4x4, geometric" in fate for fate in fates)


def test_arrays_of_jax_are_resized_alike():
    table = np.random.default_rng(0).standard_normal((11 * 7 + 3, 4))
    ours = resize_rel_pos_bias(table, (6, 4), (3, 9), "geometric")
    assert ours.shape == (5 * 17 + 3, 4)
    assert_agrees(resize_rel_pos_bias(jnp.asarray(table), (6, 4), (3, 9), "geometric"), ours)
    with pytest.raises(ValueError, match="80 rows"):
        resize_rel_pos_bias(table[1:], (6, 4), (3, 9), "geometric")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"activation": "silu"}, "activation='silu'"), ({"global_pool": "max"}, "global_pool='max'")],
)
def test_what_timm_cannot_hold_is_refused_by_name(changes, reason):
    config = vit_flax.create_model("beit_base_patch16_224").config.replace(**changes)
    assert any(reason in line for line in get_layout("beit").refusals(config))
