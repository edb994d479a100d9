"""timm's Eva: every component and gradient, wrong conversions, what is asked for and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.agreement import (
    assert_agrees,
    assert_components_agree,
    assert_same_tensors,
    load_strictly,
    run_flax,
    run_torch,
)
from parity_tests.peers import import_timm
from parity_tests.random_weights import in_float64, random_images, randomise, relative_error
from vit_flax.convert import ConversionError, detect_layout, get_layout, read_config
from vit_flax.convert.config_files import Beside
from vit_flax.models.rotation import rotary_frequencies
from vit_flax.parity.tolerances import SEEN
from vit_flax.parity.wrong_tensors import Wrong, changed, exchanged, thirds_swapped

timm = import_timm()

SIZE = (48, 32)
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
CASES = {
    "eva_giant_patch14_224": {"mlp_ratio": 3.0},
    "eva02_base_patch14_224": {},
    "eva02_base_patch16_clip_224": {},
    "eva02_enormous_patch14_clip_224": {"mlp_ratio": 3.0},
    "eva02_tiny_patch14_224": {},
    "vit_base_patch16_rope_ape_224": {},
    "vit_base_patch16_rope_mixed_224": {},
    "vit_mediumd_patch16_rope_reg1_gap_256": {},
    "vit_pe_core_tiny_patch16_384": {"attn_pool_num_heads": 4, "mlp_ratio": 3.0},
    "vit_pe_lang_large_patch14_448": {},
    "vit_small_plus_patch16_dinov3": {},
    "vit_tiny_patch16_dinov3_qkvb": {},
}


def build(name: str):
    """Returns timm's model with random weights, narrow and in float64, and our config of it."""
    arguments = {**SMALL, **CASES[name], "patch_size": 8}
    theirs = in_float64(randomise(timm.create_model(name, img_size=SIZE, dynamic_img_size=False, **arguments)))
    return theirs, vit_flax.create_model(name, image_size=SIZE, **arguments).config


COMPONENTS = (
    "eva02_base_patch16_clip_224", "eva02_enormous_patch14_clip_224", "vit_base_patch16_rope_mixed_224",
    "vit_pe_core_tiny_patch16_384", "vit_tiny_patch16_dinov3_qkvb",
)  # fmt: skip


REPEATING = ("eva02_enormous_patch14_clip_224", "vit_tiny_patch16_dinov3_qkvb")  # what others show, too


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in REPEATING else name for name in COMPONENTS]
)
def test_every_component_and_gradient_agrees(name):
    theirs, config = build(name)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=config)
    assert model.config == config
    assert_components_agree(theirs, model, params, "eva", random_images(SIZE))
    load_strictly(theirs, vit_flax.to_state_dict(model, params))


FAMILY_MUTATIONS: dict[str, dict[str, Wrong]] = {
    "eva02_base_patch14_224": {
        "swapped q and k": exchanged("q_proj.weight", "k_proj.weight"),
        "swapped q and v": exchanged("q_proj", "v_proj"),
        "gate and value exchanged": exchanged("fc1_g", "fc1_x"),
        "gelu for silu": {"activation": "gelu"},
        "wrong epsilon": {"norm_eps": 1e-5},
        "halves turned": {"rope_rotate_half": True},
        "rows and columns exchanged": {"rope_grid_indexing": "xy"},
        "not stretched": {"rope_ref_grid": None},
        "another period": {"rope_theta": 100.0},
        "class token after the patches": changed("pos_embed", lambda a: np.roll(a, 1, axis=1)),
        "norms exchanged": exchanged("norm1", "norm2"),
    },
    "eva02_enormous_patch14_clip_224": {
        "normalised first": {"block": "standard"},
        "swapped q and k": thirds_swapped("attn.qkv"),
        "tanh for erf": {"activation": "gelu_tanh"},
        "rotated": {"rope_type": "cat"},
        "mean of the patches": {"global_pool": "avg"},
    },
    "vit_base_patch16_rope_mixed_224": {
        "frequencies of another block": changed("rope.freqs", lambda a: a[:, ::-1]),
        "frequencies of the other axis": changed("rope.freqs", lambda a: a[::-1]),
        "rows and columns exchanged": {"rope_grid_indexing": "ij"},
        "LayerScale dropped": changed("gamma_", np.ones_like),
    },
    "vit_pe_core_tiny_patch16_384": {
        "another number for the first patch": {"rope_ref_grid": None},
        "wrong heads in the pooling": {"attn_pool_num_heads": 2},
        "class token not pooled": {"pool_include_prefix": False},
        "wrong epsilon": {"norm_eps": 1e-6},
        "swapped q and k": thirds_swapped("attn.qkv"),
    },
    "vit_tiny_patch16_dinov3_qkvb": {
        "LayerScale dropped": changed("gamma_", np.ones_like),
        "LayerScales exchanged": exchanged("gamma_1", "gamma_2"),
        "swapped q and k": thirds_swapped("attn.qkv"),
        "biases exchanged": exchanged("q_bias", "v_bias"),
        "tanh for erf": {"activation": "gelu_tanh"},
        "wrong epsilon": {"norm_eps": 1e-6},
        "neighbours turned": {"rope_rotate_half": False},
        "registers in another order": changed("reg_token", lambda a: a[:, ::-1]),
        "the first register alone": changed("reg_token", lambda a: a[:, [0] * a.shape[1]]),
        "mean of registers too": {"pool_include_prefix": True},
    },
}
MUTATIONS = {(case, name): change for case, changes in FAMILY_MUTATIONS.items() for name, change in changes.items()}


@pytest.mark.parametrize(("case", "mutation"), MUTATIONS)
def test_a_wrong_conversion_is_seen(case, mutation):
    theirs, config = build(case)
    change, images = MUTATIONS[case, mutation], random_images(SIZE)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    if callable(change):
        tensors = change(tensors)
    else:
        config = config.replace(**change)
    model, params = vit_flax.from_state_dict(tensors, config=config)
    outputs = {"features": run_torch(theirs.forward_features, images), "__call__": run_torch(theirs, images)}
    errors = [relative_error(run_flax(model, params, images, method), out) for method, out in outputs.items()]
    assert max(errors) > SEEN


@pytest.mark.parametrize(("head_dim", "theta"), [(64, 100.0), (64, 10000.0), (64, 10.0), (128, 100.0)])
def test_rotary_frequencies_have_the_bits_of_timms(head_dim, theta):
    from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3, freq_bands

    ours = rotary_frequencies(head_dim, theta)
    assert (ours == freq_bands(head_dim // 4, theta, step=1).numpy()).all()
    periods = RotaryEmbeddingDinoV3(head_dim, theta).get_buffer("periods")
    assert (ours == (1 / periods).numpy()).all()


AS_OTHERS = ("vit_base_patch16_rope_ape_224", "vit_pe_core_tiny_patch16_384")


@pytest.mark.parametrize("name", [name for name in CASES if name not in AS_OTHERS])
def test_names_tell_the_layout(name):
    theirs, _ = build(name)
    assert detect_layout(theirs.state_dict().keys())[0].name == "eva"


@pytest.mark.parametrize("name", AS_OTHERS)
def test_a_config_tells_the_layout_where_names_are_those_of_others(name):
    theirs, config = build(name)
    assert detect_layout(theirs.state_dict().keys())[0].name != "eva"
    assert detect_layout(theirs.state_dict().keys(), config.family)[0].name == "eva"


TOLD = (
    "num_heads", "image_size", "norm_eps", "activation", "global_pool", "rope_type", "rope_theta", "rope_rotate_half",
    "rope_grid_indexing", "rope_grid_offset",
)  # fmt: skip
ORIGINAL = ("eva02_base_patch14_224", "eva02_base_patch16_clip_224", "eva02_tiny_patch14_224")


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_names_of_eva02(name):
    from timm.models.eva import checkpoint_filter_fn

    theirs, config = build(name)
    tensors = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    model, params = vit_flax.from_state_dict(tensors, config=config)
    original = vit_flax.to_state_dict(model, params, "eva02")
    assert any(".mlp.w3." in key for key in original)
    assert not set(original) <= set(tensors)
    # timm's own reading of such a file is the judge
    read = checkpoint_filter_fn({key: torch.tensor(array) for key, array in original.items()}, theirs)
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[key].numpy(), array) for key, array in tensors.items())

    extra = {"rope.freqs_cos": np.ones((4, 8)), "blocks.1.attn.rope.freqs_sin": np.ones((4, 8))}
    extra |= {"mask_token": np.ones((1, 1, 32)), "lm_head.weight": np.ones((9, 32))}
    assert detect_layout(original.keys())[0].name == "eva02"
    told = {f: getattr(config, f) for f in (*TOLD, "rope_ref_grid")}
    model, params = vit_flax.from_state_dict({"module": {**original, **extra}}, **told)
    assert model.config == config.replace(mask_token=True, mlp_ratio=model.config.mlp_ratio)
    assert_agrees(run_flax(model, params, random_images(SIZE)), run_torch(theirs, random_images(SIZE)))
    back = vit_flax.to_state_dict(model, params)
    assert_same_tensors(back, {**original, "mask_token": extra["mask_token"]})


def test_the_config_of_timms_repositories_tells_all():
    cfg = {"tag": "lvd1689m", "input_size": [3, 256, 256], "fixed_input_size": False, "num_classes": 0}
    values = {"architecture": "vit_small_patch16_dinov3", "num_classes": 0, "pretrained_cfg": cfg}
    beside = read_config(values, {}, "a test")
    assert isinstance(beside, Beside)
    assert (beside.layout, beside.fields["rope_type"], beside.fields["reg_tokens"]) == ("eva", "dinov3", 4)


def test_the_rotation_is_asked_for():
    theirs, _ = build("eva02_tiny_patch14_224")
    known = {"num_heads": 2, "image_size": SIZE, "norm_eps": 1e-6, "activation": "silu", "global_pool": "avg"}
    with pytest.raises(ConversionError, match="do not tell rope_type"):
        vit_flax.from_state_dict(theirs.state_dict(), **known)
    with pytest.raises(ConversionError, match=r"rope_theta.*rope_rotate_half.*rope_grid_offset.*rope_ref_grid"):
        vit_flax.from_state_dict(theirs.state_dict(), **known, rope_type="cat")


@pytest.mark.parametrize(
    ("case", "changes", "reason"),
    [
        ("eva02_base_patch14_224", {"activation": "gelu"}, "activation='gelu'"),
        ("eva02_base_patch14_224", {"mlp_layer": "swiglu_packed"}, "scale_mlp_norm=True"),
        ("vit_tiny_patch16_dinov3_qkvb", {"mask_token": True}, "mask_token=True"),
        ("vit_tiny_patch16_dinov3_qkvb", {"qkv_bias": False, "key_bias": True}, "key_bias=True"),
        ("vit_tiny_patch16_dinov3_qkvb", {"patch_bias": False}, "patch_bias=False"),
        ("vit_pe_core_tiny_patch16_384", {"pool_include_prefix": False}, "pool_include_prefix=False"),
    ],
)
def test_what_timm_cannot_hold_is_refused_by_name(case, changes, reason):
    _, config = build(case)
    assert any(reason in line for line in get_layout("eva").refusals(config.replace(**changes)))
