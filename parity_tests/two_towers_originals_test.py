"""big_vision's and open_clip's two-tower models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import vit_flax
from parity_tests.agreement import assert_agrees, assert_same_tensors
from parity_tests.google_originals import BigVisionNaFlex, BigVisionText, BigVisionTwoTowers, BigVisionViT
from parity_tests.peers import import_timm, import_torchvision
from parity_tests.random_weights import random_images
from vit_flax.models import TwoTowers
from vit_flax.preprocessing.naflex import to_patches

SIZE = (12, 12)
TOKENS = np.random.default_rng(3).integers(1, 40, (3, 7))
MAP = {"pool_type": "map", "num_classes": 0}
BIG_VISION = {
    "siglip, scanned": ({**MAP, "scan": True, "depth": 3}, {"scan": True, "depth": 3}, True),
    "lit": ({"pool_type": "tok", "num_classes": 24}, {"pool_type": "map"}, False),
}
POOLS = {"gap": "avg", "map": "map"}


@pytest.mark.parametrize("case", BIG_VISION)
def test_big_vision_agrees_and_goes_back_bit_for_bit(case):
    image, text, bias = BIG_VISION[case]
    theirs = BigVisionTwoTowers(BigVisionViT(**image), BigVisionText(**text), bias)
    images = jnp.asarray(random_images(SIZE))
    tensors = drawn_tensors(theirs, images)
    expected = jax.jit(theirs.apply)({"params": unflatten_dict(tensors, sep="/")}, images, TOKENS)
    whole = {f"params/{name}": array for name, array in tensors.items()}
    with pytest.raises(vit_flax.ConversionError, match="text_pool") if "map" not in text.values() else _nothing():
        vit_flax.from_state_dict(whole)
    model, params = vit_flax.from_state_dict(whole, text_pool=POOLS.get(text.get("pool_type", ""), "last"))
    assert isinstance(model, TwoTowers)
    assert_agrees(jax.jit(model.apply)({"params": params}, images, TOKENS)[0], expected)
    layout = "big_vision_scan" if "scan" in image else "big_vision"
    assert_same_tensors(vit_flax.to_state_dict(model, params, layout), tensors)
    # the image tower is what it always was
    alone, of_image = vit_flax.from_state_dict(whole, tower="image")
    assert alone.config == model.config.image
    assert_same_tensors(flat(of_image), flat(params["image"]))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.usefixtures("_resized_in_float64")
def test_big_visions_naflex_agrees_and_goes_back_bit_for_bit(scan, tmp_path):
    theirs = BigVisionTwoTowers(BigVisionNaFlex(scan=scan), BigVisionText(scan=scan))
    images = to_patches([random_images((4 * h, 4 * w), seed=h)[0] for h, w in ((2, 5), (3, 3))], 4, 11)
    tensors = drawn_tensors(theirs, images)
    expected = jax.jit(lambda params: theirs.apply({"params": params}, images, TOKENS))(
        unflatten_dict(tensors, sep="/")
    )
    stored: dict[str, Any] = {f"params/{name}": array for name, array in tensors.items()}
    np.savez(tmp_path / "naflex.npz", **stored)
    model, params = vit_flax.load(tmp_path / "naflex.npz", text_pool="last")
    assert isinstance(model, TwoTowers)
    patches, mask, grids = images
    assert_agrees(jax.jit(model.apply)({"params": params}, patches, TOKENS, None, mask, grids)[0], expected)
    layout = "big_vision_naflex_scan" if scan else "big_vision_naflex"
    assert_same_tensors(vit_flax.to_state_dict(model, params, f"{layout}_with_text"), tensors)
    alone, of_image = vit_flax.load(tmp_path / "naflex.npz", tower="image")
    assert alone.config == model.config.image
    own = {name.removeprefix("img/"): array for name, array in tensors.items() if name.startswith("img/")}
    assert_same_tensors(vit_flax.to_state_dict(alone, of_image, layout), own)
    # and transformers has the same model under its own names
    vit_flax.save(tmp_path / "folder", model, params, "huggingface_siglip2")
    again, same = vit_flax.load(tmp_path / "folder")
    assert again.config == model.config
    assert_same_tensors(flat(same), flat(params))


def drawn_tensors(theirs: Any, images: Any) -> dict[str, np.ndarray]:
    """Returns random parameters of both towers by path."""
    drawn = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: theirs.init(key, images, TOKENS), jax.random.key(0))
    leaves: Any = flatten_dict(shapes["params"], sep="/")
    return {name: name.endswith("scale") + drawn.normal(0, 0.2, leaf.shape) for name, leaf in leaves.items()}


def flat(params: Any) -> dict[str, Any]:
    """Returns parameters by path."""
    return flatten_dict(params, sep="/")  # pyright: ignore[reportReturnType]


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


# What open_clip computes, by `python -m parity_tests.two_towers_originals_test` where it is installed.
STORED = Path(__file__).with_name("stored") / "open_clip_towers.json"
_VISION = {"image_size": 12, "patch_size": 4, "width": 16, "layers": 2, "head_width": 8}
_TEXT = {"context_length": 7, "vocab_size": 41, "width": 16, "heads": 4, "layers": 2}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "openai": {"embed_dim": 12, "quick_gelu": True, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "layer scale, mean": {
        "embed_dim": 12, "text_cfg": {**_TEXT, "ls_init_value": 0.1, "mlp_ratio": 3.0},
        "vision_cfg": {**_VISION, "ls_init_value": 0.1, "pool_type": "avg", "final_ln_after_pool": True},
    },
    "siglip": {
        "embed_dim": 12, "custom_text": True, "init_logit_bias": -10, "vision_cfg": _VISION,
        "text_cfg": {
            **_TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "worldwide": {
        "embed_dim": 12, "custom_text": True, "vision_cfg": _VISION,
        "text_cfg": {**_TEXT, "pool_type": "eos", "eos_id": 2},
    },
    "first": {"embed_dim": 12, "vision_cfg": _VISION, "text_cfg": {**_TEXT, "pool_type": "first"}},
}  # fmt: skip


def open_clip_tensors(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Returns random tensors of these shapes, the same on every machine."""
    drawn = np.random.default_rng(7)
    gain = {name for name in shapes if ".ln_" in f".{name}" and name.endswith("weight")}
    return {name: np.asarray((name in gain) + drawn.normal(0, 0.3, shapes[name])) for name in sorted(shapes)}


def _tokens() -> np.ndarray:
    tokens = TOKENS.copy()
    tokens[0, 3], tokens[1, 6], tokens[2, 2] = 2, 2, 2
    return tokens


@pytest.mark.parametrize("case", OPEN_CLIP)
def test_open_clip_agrees_and_goes_back_bit_for_bit(case):
    stored = json.loads(STORED.read_text())[case]
    tensors = open_clip_tensors(stored["shapes"])
    model, params = vit_flax.from_state_dict(tensors, config={"model_cfg": OPEN_CLIP[case], "preprocess_cfg": {}})
    assert isinstance(model, TwoTowers)
    images = jnp.asarray(random_images(SIZE))
    assert_agrees(jax.jit(model.apply)({"params": params}, images, _tokens())[0], np.asarray(stored["logits"]))
    custom = "_with_custom_text" if OPEN_CLIP[case].get("custom_text") else ""
    assert_same_tensors(vit_flax.to_state_dict(model, params, f"open_clip{custom}"), tensors)


@pytest.mark.parametrize("case", OPEN_CLIP)
def test_open_clip_itself_says_what_is_stored(case):
    pytest.importorskip("open_clip")
    stored = json.loads(STORED.read_text())[case]
    computed = compute_open_clip(case)
    assert computed["shapes"] == stored["shapes"]
    assert_agrees(np.asarray(stored["logits"]), np.asarray(computed["logits"]))


def test_openais_archives_tell_what_their_own_loader_takes_for_granted():
    stored = json.loads(STORED.read_text())["openai"]["shapes"]
    # towers of OpenAI's widths: heads are 64 wide
    wide = {
        name: [128 if side == 16 else 512 if side == 64 else side for side in shape] for name, shape in stored.items()
    }
    wide = {name: [384 if side == 48 else side for side in shape] for name, shape in wide.items()}
    tensors = open_clip_tensors(wide) | {
        name: np.asarray(7) for name in ("input_resolution", "context_length", "vocab_size")
    }
    model, _ = vit_flax.from_state_dict(tensors)
    assert (model.config.num_heads, model.config.text.num_heads) == (2, 2)
    assert (model.config.text.activation, model.config.text.pool, model.config.text.causal) == (
        "quick_gelu",
        "argmax",
        True,
    )


def compute_open_clip(case: str) -> dict[str, Any]:
    """Returns the shapes of open_clip's tensors, and its outputs with `open_clip_tensors`."""
    import torch

    import_torchvision()
    import_timm()
    import open_clip  # pyright: ignore[reportMissingImports]

    told = dict(OPEN_CLIP[case])
    kind = open_clip.CustomTextCLIP if told.pop("custom_text", False) else open_clip.CLIP
    theirs = kind(**told).double().eval()
    shapes = {name: list(tensor.shape) for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in open_clip_tensors(shapes).items()})
    images = torch.from_numpy(random_images(SIZE).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        logits = theirs.get_logits(images, torch.from_numpy(_tokens()))[0]
    return {"shapes": shapes, "logits": logits.tolist()}


if __name__ == "__main__":
    STORED.write_text(json.dumps({case: compute_open_clip(case) for case in OPEN_CLIP}) + "\n")
