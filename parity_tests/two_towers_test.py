"""CLIP, MetaCLIP 2, SigLIP and SigLIP 2 with their text towers against transformers."""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

import vit_flax
from parity_tests.agreement import assert_agrees, assert_differs, assert_same_tensors, load_strictly, wrongly_converted
from parity_tests.peers import import_transformers
from parity_tests.random_weights import random_images, randomise
from vit_flax.models import TwoTowers
from vit_flax.parity.tolerances import float32_allowed, float64_allowed
from vit_flax.parity.tower_mutations import TOWER_MUTATIONS
from vit_flax.preprocessing.naflex import to_patches

transformers = import_transformers()
pytestmark = pytest.mark.usefixtures("_resized_in_float64")

END = 60
SIZES = {
    "small": {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4},
    "wide": {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 3},
}
KINDS = {"clip": "CLIP", "old clip": "CLIP", "metaclip_2": "MetaClip2", "siglip": "Siglip", "siglip2": "Siglip2"}
LAYOUTS = {"clip": "clip", "old clip": "clip", "metaclip_2": "clip", "siglip": "siglip", "siglip2": "siglip2"}


def build(case: str, size: str = "small") -> Any:
    """Returns transformers' model of random weights, whose EOS token is END, or the highest id."""
    name, sizes = KINDS[case], SIZES[size]
    text = {**sizes, "vocab_size": END + 4, "max_position_embeddings": 9, "bos_token_id": 1, "pad_token_id": 0}
    text |= {"eos_token_id": 2 if case == "old clip" else END}
    image = {**sizes, "patch_size": 4, **({"num_patches": 9} if case == "siglip2" else {"image_size": 12})}
    more = {} if "siglip" in case else {"projection_dim": 20}
    config = getattr(transformers, f"{name}Config")(text_config={**text, **more}, vision_config=image, **more)
    return randomise(getattr(transformers, f"{name}Model")(config))


def texts(case: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the token ids of three texts and their attention mask, which SigLIP does not take."""
    tokens = np.random.default_rng(0).integers(3, END, (3, 9))
    for row, length in zip(tokens, (4, 9, 6), strict=True):
        row[length - 1] = END + 3 if case == "old clip" else END
        row[length:] = 0
    tokens[:, 1] = END + (1 if case in ("clip", "metaclip_2") else -1)  # higher than the end
    return tokens, None if case == "siglip" else tokens > 0


def images(case: str) -> tuple[np.ndarray, ...]:
    """Returns two images, or patches, mask and grids of two of different shapes."""
    if case != "siglip2":
        return (random_images((12, 12)),)
    return to_patches([random_images((4 * h, 4 * w), seed=h)[0] for h, w in ((2, 4), (3, 3))], 4, 10)


def run_theirs(theirs: Any, case: str) -> Any:
    tokens, mask = texts(case)
    arguments: dict[str, Any] = {"input_ids": torch.from_numpy(tokens)}
    if mask is not None:
        arguments["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    dtype = np.float64 if next(theirs.parameters()).dtype is torch.float64 else np.float32
    if case == "siglip2":
        patches, kept, grids = (torch.from_numpy(array) for array in images(case))
        more = {"pixel_values": patches, "pixel_attention_mask": kept.int(), "spatial_shapes": grids.long()}
    else:
        turned = np.ascontiguousarray(images(case)[0].transpose(0, 3, 1, 2))
        more = {"pixel_values": torch.from_numpy(turned.astype(dtype))}
    return theirs(**arguments, **more)


@functools.cache
def compiled(config: Any) -> Any:
    """Returns the jitted model, once for all tests of one config."""
    return jax.jit(lambda params, *inputs: TwoTowers(config).apply({"params": params}, *inputs))


def run(model: Any, params: Any, case: str, dtype: Any = jnp.float64) -> Any:
    first, *more = images(case)
    return compiled(model.config)(params, jnp.asarray(first, dtype), *texts(case), *more)


@pytest.mark.parametrize(
    ("case", "size"), [*((case, "small") for case in KINDS), ("clip", "wide"), ("siglip2", "wide")]
)
def test_a_folder_gives_both_towers_which_agree_and_go_back_bit_for_bit(case, size, tmp_path):
    theirs = build(case, size)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = vit_flax.load(tmp_path / "theirs")
    assert isinstance(model, TwoTowers)
    expected = run_theirs(theirs, case)
    per_image, per_text = run(model, params, case)
    assert_agrees(per_image, expected.logits_per_image.detach())
    assert_agrees(per_text, expected.logits_per_text.detach())
    layout = f"huggingface_{LAYOUTS[case]}"
    back = vit_flax.to_state_dict(model, params, layout)
    assert_same_tensors(back, theirs.state_dict())
    load_strictly(build(case, size), back)
    # what is written says to transformers and to us what it is
    vit_flax.save(tmp_path / "ours", model, params, layout)
    told = json.loads((tmp_path / "ours" / "config.json").read_text())
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours", dtype=torch.float64)
    assert type(again) is type(theirs) or (case == "metaclip_2" and told["model_type"] == "clip")
    assert_agrees(run_theirs(again, case).logits_per_image.detach(), expected.logits_per_image.detach())
    assert vit_flax.load(tmp_path / "ours")[0].config == model.config


def flat(params: Any) -> dict[str, Any]:
    """Returns parameters by path."""
    return flatten_dict(params, sep="/")  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("case", ["clip", "siglip2"])
def test_gradients_of_all_parameters_agree(case):
    theirs = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict())
    weights = np.random.default_rng(2).standard_normal((2, 3))
    (run_theirs(theirs, case).logits_per_image * torch.from_numpy(weights)).sum().backward()
    # conversion moves values, so that of gradients it makes gradients
    taken = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in theirs.named_parameters()}
    expected: Any = flatten_dict(vit_flax.from_state_dict(taken, config=theirs.config.to_dict())[1], sep="/")
    found: Any = flatten_dict(jax.grad(lambda p: (run(model, p, case)[0] * weights).sum())(params), sep="/")
    largest = max(float(np.linalg.norm(value)) for value in expected.values())
    for path, value in expected.items():
        allowed = float64_allowed(float(np.linalg.norm(value)), largest)
        assert np.linalg.norm(found[path] - value) <= allowed, path


@pytest.mark.parametrize("case", ["clip", "siglip"])
def test_float32_errs_no_more_than_torch(case):
    theirs = build(case)
    exact = run_theirs(theirs, case).logits_per_image.detach().numpy()
    single = theirs.float()
    rounded = run_theirs(single, case).logits_per_image.detach().numpy()
    model, params = vit_flax.from_state_dict(single.state_dict(), config=theirs.config.to_dict())
    ours = np.asarray(run(model, params, case, jnp.float32)[0])
    norm = float(np.linalg.norm(exact))
    assert np.linalg.norm(ours - exact) <= float32_allowed(float(np.linalg.norm(rounded - exact)), norm, norm)


@pytest.mark.parametrize("name", TOWER_MUTATIONS)
def test_deliberate_errors_are_seen(name):
    case, wrong = TOWER_MUTATIONS[name].case, TOWER_MUTATIONS[name].wrong
    assert wrong is not None
    theirs = build(case)
    told = {"layout": f"huggingface_{LAYOUTS[case]}_with_text", "config": theirs.config.to_dict()}
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    model, params = wrongly_converted(tensors, wrong, **told)
    assert_differs(run(model, params, case)[0], run_theirs(theirs, case).logits_per_image.detach())


def test_padding_that_is_not_hidden_is_seen():
    theirs = build("siglip2")
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict())
    tokens, _ = texts("siglip2")
    first, *more = images("siglip2")
    seen = compiled(model.config)(params, jnp.asarray(first), tokens, None, *more)[0]
    assert_differs(seen, run_theirs(theirs, "siglip2").logits_per_image.detach())


def test_towers_of_one_folder_can_be_had_alone(tmp_path):
    theirs = build("clip")
    theirs.save_pretrained(tmp_path)
    both, params = vit_flax.load(tmp_path)
    image, alone = vit_flax.load(tmp_path, tower="image")
    assert image.config == both.config.image
    assert_same_tensors(flat(alone), flat(params["image"]))
    # who asks for classes, or says an image model's config, wants images
    assert vit_flax.load(tmp_path, num_classes=0)[0].config.num_classes == 0
    assert vit_flax.load(tmp_path, config=image.config)[0].config == image.config
    with pytest.raises(ValueError, match="tower must be 'image' or 'both', got 'text'"):
        vit_flax.load(tmp_path, tower="text")
    transformers.CLIPVisionModel(theirs.config.vision_config).save_pretrained(tmp_path / "image")
    with pytest.raises(vit_flax.ConversionError, match="has no text tower"):
        vit_flax.load(tmp_path / "image", tower="both")


def test_what_text_towers_lack_or_have_too_much_is_named(tmp_path):
    theirs = build("clip")
    told = {"config": theirs.config.to_dict()}
    tensors = dict(theirs.state_dict())
    del tensors["text_model.final_layer_norm.bias"]
    tensors["text_model.embeddings.segment.weight"] = torch.zeros(2, 24)
    with pytest.raises(vit_flax.ConversionError) as caught:
        vit_flax.from_state_dict(tensors, **told)
    assert "missing: text_model.final_layer_norm.bias (24)" in str(caught.value)
    assert "unexpected: text_model.embeddings.segment.weight (2, 24)" in str(caught.value)
    with pytest.raises(vit_flax.ConversionError, match=r"`text_num_heads=N`.*`tower='image'`"):
        vit_flax.from_state_dict(
            theirs.state_dict(), num_heads=4, image_size=12, norm_eps=1e-5, activation="quick_gelu"
        )
    told["config"]["text_config"]["rope_scaling"] = 2
    with pytest.raises(vit_flax.ConversionError, match="text_config' with rope_scaling=2"):
        vit_flax.from_state_dict(theirs.state_dict(), **told)
    assert vit_flax.from_state_dict(theirs.state_dict(), **told, tower="image")[0].config.embed_dim == 24


def test_a_model_with_its_config_stored_is_read_again(tmp_path):
    theirs = build("siglip")
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict())
    for name in ("towers.safetensors", "towers.npz", "towers.msgpack"):
        vit_flax.save(tmp_path / name, model, params, "huggingface_siglip")
        again, same = vit_flax.load(tmp_path / name, config=model.config)
        assert again.config == model.config
        assert_same_tensors(flat(same), flat(params))
    assert vit_flax.load(tmp_path / "towers.safetensors")[0].config == model.config
    assert vit_flax.load(tmp_path / "towers.safetensors", tower="image")[0].config == model.config.image
