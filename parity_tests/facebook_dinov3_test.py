"""Files as the DINOv3 and I-JEPA repositories write them, judged by timm, which reads them too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.agreement import (
    assert_agrees,
    assert_differs,
    assert_same_tensors,
    load_strictly,
    run_flax,
    run_torch,
    wrongly_converted,
)
from parity_tests.peers import import_timm
from parity_tests.random_weights import in_float64, random_images, randomise, relative_error
from vit_flax.convert import ConversionError
from vit_flax.parity.tolerances import FLOAT32_SEEN, SEEN
from vit_flax.parity.wrong_tensors import Wrong, changed, exchanged, thirds_swapped

timm = import_timm()

SIZE = (48, 32)
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "num_classes": 0}


def dinov3(name: str):
    """Returns timm's model, and its weights under the original's names, keys with biases that their mask hides."""
    theirs = randomise(timm.create_model(name, img_size=SIZE, dynamic_img_size=False, global_pool="token", **SMALL))
    theirs = in_float64(theirs)
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    if "plus" in name:
        names |= {"fc1_g": "w1", "fc1_x": "w2", "fc2": "w3"}
    original = {}
    for key, tensor in theirs.state_dict().items():
        new = key
        for ours, other in names.items():
            new = new.replace(ours, other)
        original[new] = tensor.numpy().copy()
    for i in range(2):
        attn = f"blocks.{i}.attn."
        biases = [original.pop(f"{attn}{c}_bias", None) for c in "qv"]
        if biases[0] is not None:
            original[f"{attn}qkv.bias"] = np.concatenate([biases[0], np.full(32, 0.25), biases[1]])
            original[f"{attn}qkv.bias_mask"] = np.repeat([1.0, 0.0, 1.0], 32)
    original["mask_token"] = np.full((1, 32), 0.5)
    original["rope_embed.periods"] = np.power(100.0, np.arange(4) / 4).astype(np.float32).astype(np.float64)
    return theirs, original


NAMES = ["vit_small_plus_patch16_dinov3", "vit_small_plus_patch16_dinov3_qkvb", "vit_tiny_patch16_dinov3_qkvb"]


@pytest.mark.parametrize("name", NAMES)
def test_dinov3_is_read_and_written_back(name):
    theirs, original = dinov3(name)
    as_torch = {key: torch.tensor(array) for key, array in original.items()}
    load_strictly(theirs, {k: t.numpy() for k, t in timm.models.eva.checkpoint_filter_fn(as_torch, theirs).items()})
    model, params = vit_flax.from_state_dict(original, image_size=SIZE)
    images = random_images(SIZE)
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))
    assert_agrees(run_flax(model, params, images, "features"), run_torch(theirs.forward_features, images))
    for i in range(2):
        if f"blocks.{i}.attn.qkv.bias" in original:
            original[f"blocks.{i}.attn.qkv.bias"][32:64] = 0  # what the mask hides is not kept
    assert_same_tensors(vit_flax.to_state_dict(model, params, "dinov3"), original)
    # the same model under Hugging Face's names
    elsewhere = vit_flax.to_state_dict(model, params, "huggingface_dinov3")
    again, moved = vit_flax.from_state_dict(elsewhere, config=model.config)
    assert_agrees(run_flax(again, moved, images), run_torch(theirs, images))


def test_eupes_file_is_read_by_its_preset(tmp_path):
    theirs, original = dinov3("vit_tiny_patch16_dinov3_qkvb")
    beside = {f"projectors.teacher.{name}": np.ones((4, 32)) for name in ("weight", "mlp.0.weight", "a.b.c.weight")}
    file = {key: torch.tensor(array) for key, array in {**original, **beside}.items()}
    judged = {k: t.numpy() for k, t in timm.models.eva.checkpoint_filter_fn(file, theirs).items()}
    load_strictly(theirs, judged)
    torch.save(file, tmp_path / "eupe_vitt16_pretrain_lvd1689m.pth")
    sizes = {**SMALL, "image_size": SIZE, "global_pool": "token"}
    model, params = vit_flax.load(tmp_path / "eupe_vitt16_pretrain_lvd1689m.pth", config=EUPE, **sizes)
    images = random_images(SIZE)
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))
    told = vit_flax.load(tmp_path / "eupe_vitt16_pretrain_lvd1689m.pth", image_size=SIZE)
    assert_agrees(run_flax(*told, images), run_torch(theirs, images))


EUPE = "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"
MUTATIONS: dict[str, Wrong] = {
    "swapped q and k": thirds_swapped("attn.qkv.weight"),
    "q and v swapped in the bias": thirds_swapped("attn.qkv.bias", 0, 2),
    "LayerScale dropped": changed("ls", lambda a: np.ones_like(a)),
    "gate and value exchanged": exchanged("mlp.w1", "mlp.w2"),
    "gelu for silu": {"activation": "gelu"},
    "wrong epsilon": {"norm_eps": 1e-6},
    "registers in another order": changed("storage_tokens", lambda a: a[:, ::-1]),
    "neighbours turned": {"rope_rotate_half": False},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_conversion_is_seen(mutation):
    theirs, original = dinov3(NAMES[1])
    change, images = MUTATIONS[mutation], random_images(SIZE)
    if mutation == "q and v swapped in the bias":
        bias = {key: array for key, array in original.items() if key.endswith("qkv.bias")}
        original |= change(bias)  # pyright: ignore[reportCallIssue]
        change = {}
    model, params = wrongly_converted(original, change, image_size=SIZE)
    error = relative_error(run_flax(model, params, images, "features"), run_torch(theirs.forward_features, images))
    assert error > SEEN


def test_periods_tell_the_heads():
    _, original = dinov3(NAMES[2])
    assert vit_flax.from_state_dict(original, image_size=SIZE)[0].config.num_heads == 2
    with pytest.raises(ConversionError, match=r"rope_embed\.periods is \(4\), expected \(8\)"):
        vit_flax.from_state_dict(original, image_size=SIZE, num_heads=1)


def test_a_mask_that_is_none_is_refused():
    _, original = dinov3(NAMES[2])
    original["blocks.1.attn.qkv.bias_mask"][:] = np.nan  # as a new model has it
    with pytest.raises(ConversionError, match=r"blocks\.1\.attn\.qkv\.bias_mask should be ones, zeros, ones"):
        vit_flax.from_state_dict(original, image_size=SIZE)


def test_keys_without_a_mask_have_a_bias():
    theirs, original = dinov3(NAMES[2])
    for i in range(2):
        del original[f"blocks.{i}.attn.qkv.bias_mask"]
    model, params = vit_flax.from_state_dict(original, image_size=SIZE)
    assert model.config.key_bias
    assert_differs(run_flax(model, params, random_images(SIZE)), run_torch(theirs, random_images(SIZE)), FLOAT32_SEEN)
    assert_same_tensors(vit_flax.to_state_dict(model, params, "dinov3"), original)


def ijepa():
    """Returns timm's model of an I-JEPA encoder, and the training file that holds it."""
    shape = {**SMALL, "img_size": SIZE, "class_token": False, "global_pool": "avg", "fc_norm": False}
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **shape))
    encoder = {f"module.{key}": tensor for key, tensor in theirs.state_dict().items()}
    others = {"predictor": {"module.predictor_embed.weight": torch.zeros(4, 4)}, "epoch": 3}
    return theirs, {"encoder": encoder, "target_encoder": {k: t + 1 for k, t in encoder.items()}, **others}


def test_ijepa_is_read_and_written_back():
    theirs, file = ijepa()
    model, params = vit_flax.from_state_dict(file, "ijepa", entry="encoder", num_heads=2, image_size=SIZE)
    images = random_images(SIZE)
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))
    assert_same_tensors(vit_flax.to_state_dict(model, params, "ijepa"), theirs.state_dict())
    with pytest.raises(ConversionError, match=r"target_encoder.*entry="):
        vit_flax.from_state_dict(file, "ijepa", num_heads=2, image_size=SIZE)


IJEPA_MUTATIONS: dict[str, Wrong] = {
    "swapped q and k": thirds_swapped("attn.qkv"),
    "wrong epsilon": {"norm_eps": 1e-5},
    "tanh for erf": {"activation": "gelu_tanh"},
    "positions moved": changed("pos_embed", lambda a: np.roll(a, 1, axis=1)),
}


@pytest.mark.parametrize("mutation", IJEPA_MUTATIONS)
def test_a_wrong_conversion_of_ijepa_is_seen(mutation):
    theirs, _ = ijepa()
    change, images = IJEPA_MUTATIONS[mutation], random_images(SIZE)
    tensors = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    model, params = wrongly_converted(tensors, change, "ijepa", num_heads=2, image_size=SIZE)
    assert_differs(run_flax(model, params, images), run_torch(theirs, images))
