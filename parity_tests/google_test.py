"""The google_npz, big_vision and big_vision_scan layouts against flax.linen models and against timm's .npz loader."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.ndimage
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

import vit_flax
from parity_tests.agreement import (
    assert_agrees,
    assert_differs,
    assert_same_tensors,
    run_flax,
    run_torch,
    wrongly_converted,
)
from parity_tests.google_originals import BigVisionViT, VisionTransformerJax
from parity_tests.peers import import_timm
from parity_tests.random_weights import random_images
from vit_flax.parity.tolerances import ANOTHER_DEFINITION
from vit_flax.parity.wrong_tensors import changed, exchanged

SIZE = (12, 12)
GOOGLE_CASES = {
    "token": {},
    "token, pre-logits": {"representation_size": 16},
    "gap": {"classifier": "gap"},
    "unpooled, no head": {"classifier": "unpooled", "num_classes": 0},
    "one head": {"heads": 1, "width": 20},
}
BIG_VISION_CASES = {
    "map": {"pool_type": "map", "num_classes": 0},
    "map, head": {"pool_type": "map"},
    "gap": {"pool_type": "gap"},
    "class token": {"pool_type": "tok"},
    "sincos, pre-logits": {"posemb": "sincos2d", "rep_size": 16},
    "patches not square": {"pool_type": "map", "patch": (4, 6)},
}
POOLS = {"gap": "avg", "unpooled": "none"}


def build(module, seed=0):
    """Returns the original's random tensors by name, and its output for the images."""
    images = jnp.asarray(random_images(SIZE))
    params = module.init(jax.random.key(0), images)["params"]
    generator = np.random.default_rng(seed)
    leaves: Any = flatten_dict(params, sep="/")
    flat = {name: name.endswith("scale") + generator.normal(0, 0.2, leaf.shape) for name, leaf in leaves.items()}
    return flat, np.asarray(module.apply({"params": unflatten_dict(flat, sep="/")}, images)), np.asarray(images)


def told(case):
    pool = case.get("classifier") or case.get("pool_type", "token" if "posemb" not in case else "gap")
    values: dict[str, Any] = {"global_pool": POOLS[pool]} if pool in POOLS else {}
    if "posemb" in case or "patch" in case:
        values["image_size"] = SIZE
    return values


def check(tensors, expected, images, layout, case):
    model, params = vit_flax.from_state_dict(tensors, **told(case))
    assert model.config.image_size == SIZE
    assert model.config.activation == "gelu_tanh"
    assert_agrees(run_flax(model, params, images), expected)
    assert_same_tensors(vit_flax.to_state_dict(model, params, layout=layout), tensors)


@pytest.mark.parametrize("case", GOOGLE_CASES)
def test_google_npz_agrees_in_float64_and_goes_back_bit_for_bit(case):
    check(*build(VisionTransformerJax(**GOOGLE_CASES[case])), "google_npz", GOOGLE_CASES[case])


@pytest.mark.parametrize("case", BIG_VISION_CASES)
def test_big_vision_agrees_in_float64_and_goes_back_bit_for_bit(case):
    check(*build(BigVisionViT(**BIG_VISION_CASES[case])), "big_vision", BIG_VISION_CASES[case])


@pytest.mark.parametrize("case", ["map", "gap"])
def test_scanned_layers_agree_and_are_stacked_again(case):
    arguments = {**BIG_VISION_CASES[case], "depth": 3, "scan": True}
    tensors, expected, images = build(BigVisionViT(**arguments))
    assert tensors["Transformer/encoderblock/LayerNorm_0/scale"].shape == (3, 24)
    check(tensors, expected, images, "big_vision_scan", arguments)


@pytest.mark.parametrize("prefix", ["opt/target/", "params/", "params/img/"])
def test_prefixes_are_taken_off_and_what_stands_beside_is_left(prefix, tmp_path):
    tensors, expected, images = build(BigVisionViT(pool_type="map"))
    beside = {"opt/state/step": np.zeros(()), "params/t": np.zeros(1), "params/txt/head/kernel": np.zeros((3, 3))}
    beside = {name: array for name, array in beside.items() if name.split("/")[0] == prefix.split("/")[0]}
    beside = beside if prefix != "params/" else {}
    np.savez(tmp_path / "file.npz", **{prefix + name: array for name, array in tensors.items()}, **beside)
    model, params = vit_flax.load(tmp_path / "file.npz")
    assert_agrees(run_flax(model, params, images), expected)


def test_bfloat16_is_read_and_written_bit_for_bit(tmp_path):
    tensors, _, _ = build(BigVisionViT(pool_type="map"))
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    np.savez(tmp_path / "file.npz", **tensors)
    model, params = vit_flax.load(tmp_path / "file.npz")
    assert params["patch_embed"]["proj"]["kernel"].dtype == jnp.bfloat16
    assert_same_tensors(vit_flax.to_state_dict(model, params, layout="big_vision"), tensors)
    vit_flax.save(tmp_path / "back.npz", model, params, layout="big_vision")
    with np.load(tmp_path / "file.npz") as theirs, np.load(tmp_path / "back.npz") as ours:
        assert_same_tensors(dict(ours), dict(theirs))


@pytest.mark.parametrize("size", [(8, 8), (20, 20)])
@pytest.mark.parametrize(
    ("module", "name", "prefix"),
    [
        (VisionTransformerJax(), "Transformer/posembed_input/pos_embedding", 1),
        (BigVisionViT(pool_type="tok"), "pos_embedding", 0),
    ],
)
def test_another_image_size_as_google_resizes(module, name, prefix, size):
    tensors, _, _ = build(module)
    grid = tensors[name][0, prefix:].reshape(3, 3, -1)
    grid: Any = scipy.ndimage.zoom(grid, (size[0] / 4 / 3, size[1] / 4 / 3, 1), order=1)
    table = np.concatenate([tensors[name][:, :prefix], grid.reshape(1, -1, grid.shape[-1])], axis=1)
    images = jnp.asarray(random_images(size))
    expected = module.apply({"params": unflatten_dict({**tensors, name: table}, sep="/")}, images)
    model, params = vit_flax.from_state_dict(tensors, image_size=size)
    assert_agrees(run_flax(model, params, np.asarray(images)), expected)


class TestOlderBigVision:
    def test_a_position_for_the_class_token(self):
        tensors, expected, images = build(VisionTransformerJax())
        renamed = {
            name.replace("Transformer/posembed_input/", "Transformer/")
            .replace("Attention_1", "Attention_0")
            .replace("LayerNorm_2", "LayerNorm_1")
            .replace("MlpBlock_3", "MlpBlock_0"): array
            for name, array in tensors.items()
        }
        model, params = vit_flax.from_state_dict(renamed)
        assert model.config.no_embed_class is False
        assert_agrees(run_flax(model, params, images), expected)

    def test_a_pooling_head_without_a_name_of_its_own(self):
        tensors, expected, images = build(BigVisionViT(pool_type="map"))
        inlined = {name.removeprefix("MAPHead_0/"): array for name, array in tensors.items()}
        model, params = vit_flax.from_state_dict(inlined)
        assert_agrees(run_flax(model, params, images), expected)


TIMM_CASES = {
    "google_npz": (VisionTransformerJax(), {}),
    "big_vision": (BigVisionViT(pool_type="tok"), {"no_embed_class": True}),
    "big_vision, map": (BigVisionViT(pool_type="map"), {"class_token": False, "global_pool": "map"}),
    "big_vision_scan": (
        BigVisionViT(pool_type="gap", scan=True), {"class_token": False, "global_pool": "avg", "fc_norm": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TIMM_CASES)
def test_agrees_with_timms_loader_under_timms_exact_gelu(case, tmp_path):
    module, arguments = TIMM_CASES[case]
    tensors, theirs_in_jax, images = build(module)
    prefix = "" if case == "google_npz" else "params/"
    np.savez(tmp_path / "file.npz", **{prefix + name: array for name, array in tensors.items()})
    import_timm()
    from timm.models.vision_transformer import VisionTransformer

    shape = {"img_size": SIZE, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 40 / 24}
    theirs = VisionTransformer(**shape, num_classes=5, **arguments).double().eval()
    theirs.load_pretrained(str(tmp_path / "file.npz"))
    pool: Any = {"global_pool": "avg"} if "gap" in str(module.__dict__.get("pool_type")) else {}
    model, params = vit_flax.load(tmp_path / "file.npz", activation="gelu", **pool)
    with torch.no_grad():
        expected = run_torch(theirs, images)
    assert_agrees(run_flax(model, params, images), expected)
    assert_differs(theirs_in_jax, expected, ANOTHER_DEFINITION)  # Google's own GELU is another


def test_refuses_a_hybrid_and_a_naflex_model_as_another_by_name():
    tensors, _, _ = build(VisionTransformerJax())
    with pytest.raises(vit_flax.ConversionError, match="conv_root/kernel"):
        vit_flax.from_state_dict({**tensors, "conv_root/kernel": np.zeros((7, 7, 3, 64))})
    tensors, _, _ = build(BigVisionViT(pool_type="map"))
    flat = {**tensors, "embedding/kernel": tensors["embedding/kernel"].reshape(-1, 24)}
    with pytest.raises(vit_flax.ConversionError, match="NaFlex"):
        vit_flax.from_state_dict(flat, layout="big_vision")
    with pytest.raises(vit_flax.ConversionError, match="'big_vision_naflex': the tensors do not tell image_size"):
        vit_flax.from_state_dict(flat)  # whose table is of rows, not of rows and columns


def test_asks_how_to_pool_when_the_tensors_do_not_tell():
    tensors, _, _ = build(BigVisionViT(pool_type="gap"))
    with pytest.raises(vit_flax.ConversionError, match="global_pool"):
        vit_flax.from_state_dict(tensors)


@pytest.mark.parametrize("layout", ["google_npz", "big_vision", "big_vision_scan"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("norm_eps", 1e-12), ("init_values", 1e-5), ("reg_tokens", 2), ("fc_norm", True), ("activation", "quick_gelu")],
)
def test_refuses_to_hold_what_google_cannot_compute(layout, field, value):
    small = {"image_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 4}
    model = vit_flax.create_model("vit_base_patch16_224", **{**small, field: value})
    with pytest.raises(vit_flax.ConversionError, match=field):
        vit_flax.to_state_dict(model, {}, layout=layout)


_ATTENTION = "MultiHeadDotProductAttention_0"
MUTATIONS = {
    "swapped q and k": exchanged(f"block_0/{_ATTENTION}/query", f"block_0/{_ATTENTION}/key"),
    "swapped k and v in the pooling": exchanged(f"MAPHead_0/{_ATTENTION}/key", f"MAPHead_0/{_ATTENTION}/value"),
    "heads and widths transposed": changed("out/kernel", lambda a: a.swapaxes(0, 1).reshape(a.shape)),
    "wrong epsilon": {"norm_eps": 1e-5},
    "erf for tanh": {"activation": "gelu"},
    "rows and columns of patches": changed("embedding/kernel", lambda a: a.swapaxes(0, 1)),
    "positions column by column": changed(
        "pos_embedding", lambda a: a.reshape(1, 3, 3, -1).swapaxes(1, 2).reshape(a.shape)
    ),
    "norms exchanged": exchanged("encoderblock_1/LayerNorm_0", "encoderblock_1/LayerNorm_1"),
    "blocks exchanged": exchanged("encoderblock_0", "encoderblock_1"),
    "layers of the MLP head": changed("MAPHead_0/MlpBlock_0/Dense_1/bias", lambda a: a[::-1]),
    "probe left out": changed("probe", np.zeros_like),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_conversion_is_seen(mutation):
    tensors, expected, images = build(BigVisionViT(pool_type="map"))
    change = MUTATIONS[mutation]
    model, params = wrongly_converted(tensors, change)
    assert_differs(run_flax(model, params, images), expected)


def test_the_order_of_class_token_and_positions_is_seen():
    tensors, expected, images = build(BigVisionViT(pool_type="tok"))
    # as if the class token had taken the first position: the grid shifted by one
    shifted = {**tensors, "pos_embedding": np.roll(tensors["pos_embedding"], 1, axis=1)}
    model, params = vit_flax.from_state_dict(shifted)
    assert_differs(run_flax(model, params, images), expected)
