"""Depth Anything against transformers: loaded, computed at two image sizes, converted back, drawn."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image
from sklearn.datasets import load_sample_image

from parity_tests.agreement import assert_agrees, assert_differs, assert_same_tensors
from parity_tests.peers import import_transformers
from parity_tests.random_weights import random_images, randomise, relative_error
from vit_flax import ConversionError
from vit_flax.cli.main import main
from vit_flax.depth import (
    depth_at_image_size,
    depth_state_dict,
    estimate_depth,
    load_depth,
    read_depth_preprocessing,
    save_depth,
)
from vit_flax.parity.tolerances import FLOAT32_RELATIVE, FLOAT32_ROUNDING
from vit_flax.preprocessing.depth import DepthPreprocessing

transformers: Any = import_transformers()

BACKBONE = {
    "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 7, "out_indices": [1, 2, 3], "reshape_hidden_states": False, "apply_layernorm": True,
}  # fmt: skip
HEADS = {
    "patch_size": 7, "reassemble_hidden_size": 32, "reassemble_factors": [2, 1, 0.5], "neck_hidden_sizes": [4, 6, 8],
    "fusion_hidden_size": 10, "head_hidden_size": 3,
}  # fmt: skip
METRIC = {"depth_estimation_type": "metric", "max_depth": 20}


def build(**changes: Any) -> Any:
    backbone = transformers.Dinov2Config(**{k: v for k, v in BACKBONE.items() if k != "model_type"})
    config = transformers.DepthAnythingConfig(**{**HEADS, **changes}, backbone_config=backbone)
    model = randomise(transformers.DepthAnythingForDepthEstimation(config))
    with torch.no_grad():  # its table is resized in float32; and a depth that is not cut off at zero
        table = model.backbone.embeddings.position_embeddings
        table.copy_(table.float())
        model.head.conv3.bias.fill_(1.0)
    return model


def depth_of(model: Any, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).predicted_depth.numpy()


INTERPOLATE = torch.nn.functional.interpolate


def resized_exactly(table: torch.Tensor, *sizes: Any, **arguments: Any) -> torch.Tensor:
    return INTERPOLATE(table.double(), *sizes, **arguments)


SIZES = ((28, 28), (35, 56))


@pytest.mark.parametrize(("changes", "sizes"), [({}, SIZES), (METRIC, SIZES[:1])], ids=["relative", "metric"])
def test_depth_agrees_at_two_sizes_and_goes_back(changes, sizes, tmp_path, monkeypatch) -> None:
    theirs = build(**changes)
    monkeypatch.setattr(torch.nn.functional, "interpolate", resized_exactly)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = load_depth(tmp_path / "theirs")
    for size in sizes:
        images = random_images(size)
        sized, own = depth_at_image_size(model, params, size)
        expected = depth_of(theirs, images)
        assert (expected > 0).mean() > 0.5
        assert_agrees(jax.jit(sized.apply)({"params": own}, images), expected)
    save_depth(tmp_path / "ours", model, params)
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True, dtype=torch.float64)
    assert not any(info.values()), info
    assert_same_tensors({n: t.numpy() for n, t in again.state_dict().items()}, theirs.state_dict())
    reread, same = load_depth(tmp_path / "ours")
    assert reread.config == model.config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same))
    from_memory, _ = load_depth(theirs.state_dict(), theirs.config.to_dict())
    assert from_memory.config == model.config


# what of the model's config is wrong, or what is done to the parameters
WRONG: dict[str, Any] = {
    "no sigmoid": {"depth_type": "relative"},
    "another scale": {"max_depth": 1.0},
    "tokens of other blocks": {"layers": (0, 1)},
    "cells enlarged the other way round": "reassemble_0",
    "two convolutions exchanged": ("convolution1", "convolution2"),
    "two residual branches exchanged": ("residual_layer1", "residual_layer2"),
}


@pytest.fixture(scope="module")
def small() -> Any:
    """Returns a metric model of two grids, its Flax conversion, its parameters, images."""
    changes = {"reassemble_factors": [2, 1], "neck_hidden_sizes": [4, 6], **METRIC}
    with mock.patch.dict(BACKBONE, {"out_indices": [1, 3]}):
        theirs = build(**changes)
    model, params = load_depth(theirs.state_dict(), theirs.config.to_dict())
    return theirs, model, params, random_images((28, 28))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_depth_model_is_seen(small, name) -> None:
    theirs, model, params, images = small
    wrong = WRONG[name]
    if isinstance(wrong, dict):
        model = model.clone(config=model.config.replace(**wrong))
    elif isinstance(wrong, str):
        kernel = params["neck"][wrong]["resize"]["kernel"]
        resize = {**params["neck"][wrong]["resize"], "kernel": kernel[::-1]}
        params = {**params, "neck": {**params["neck"], wrong: {**params["neck"][wrong], "resize": resize}}}
    else:
        first, second = wrong
        flat = flatten_dict(params, sep="/")
        swap = {first: second, second: first}
        moved = {"/".join(swap.get(part, part) for part in path.split("/")): leaf for path, leaf in flat.items()}
        params = unflatten_dict(moved, sep="/")
    assert_differs(model.apply({"params": params}, images), depth_of(theirs, images))


def test_it_is_written_to_other_kinds_of_files(small, tmp_path) -> None:
    theirs, model, params, _ = small
    told = DepthPreprocessing(size=(42, 42), multiple=7)
    for name, given in (("a.orbax", told), ("b.npz", None), ("c.msgpack", None), ("d.safetensors", None)):
        save_depth(tmp_path / name, model, params, given)
        carried = name.endswith(("orbax", "safetensors"))
        again, same = load_depth(tmp_path / name, None if carried else theirs.config.to_dict())
        assert again.config == model.config
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same)), name
    assert read_depth_preprocessing(tmp_path / "a.orbax") == (told, "")
    with pytest.raises(ConversionError, match=r"a single file holds no preprocessor_config\.json"):
        save_depth(tmp_path / "e.npz", model, params, told)


def test_gradients_agree(small) -> None:
    theirs, model, params, images = small
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    weights = np.random.default_rng(0).standard_normal((2, 28, 28))
    (theirs(pixels).predicted_depth * torch.from_numpy(weights)).sum().backward()
    loss = jax.jit(jax.grad(lambda p, x: (model.apply({"params": p}, x) * weights).sum(), argnums=(0, 1)))
    own, image = loss(params, images)
    assert_agrees(image.transpose(0, 3, 1, 2), pixels.grad.detach().numpy())  # pyright: ignore[reportOptionalMemberAccess]
    ours = depth_state_dict(model, own)
    compared = 0
    for name, tensor in load_names(theirs).items():
        if tensor.grad is not None:
            assert_agrees(ours[name], tensor.grad.numpy())
            compared += 1
    assert compared == 30  # of two grids, but for the branch of the first that nothing is joined to


def load_names(theirs: Any) -> dict[str, Any]:
    """Returns the parameters of neck and head, which have the same names in files and in memory."""
    return {name: tensor for name, tensor in theirs.named_parameters() if not name.startswith("backbone.")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    """Returns a folder as transformers saves it, with its processor, and a photograph."""
    path = tmp_path_factory.mktemp("depth")
    build().float().save_pretrained(path)
    sizes = {"size": {"height": 42, "width": 42}, "ensure_multiple_of": 7, "keep_aspect_ratio": True}
    transformers.DPTImageProcessor(**sizes).save_pretrained(path)
    photo = load_sample_image("china.jpg")[60:160, 100:253]
    Image.fromarray(photo).save(path / "photo.png")
    return path, photo


def test_a_photograph_is_prepared_estimated_and_resized_as_transformers_does(folder) -> None:
    path, photo = folder
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    theirs = transformers.AutoModelForDepthEstimation.from_pretrained(path).eval()
    inputs = processor(images=Image.fromarray(photo), return_tensors="pt")
    with torch.no_grad():
        out = theirs(**inputs)
    (expected,) = processor.post_process_depth_estimation(out, target_sizes=[photo.shape[:2]])
    preprocessing, note = read_depth_preprocessing(path)
    assert not note
    ours = preprocessing.prepare(photo)
    assert np.abs(ours.transpose(2, 0, 1) - inputs["pixel_values"][0].numpy()).max() < FLOAT32_ROUNDING
    depth = estimate_depth(*load_depth(path), photo, preprocessing)
    assert depth.shape == photo.shape[:2]
    assert relative_error(depth, expected["predicted_depth"].numpy()) < FLOAT32_RELATIVE


def test_the_command_writes_a_picture_and_the_numbers(folder, tmp_path, capsys) -> None:
    path, photo = folder
    image = str(path / "photo.png")
    assert main(["depth", str(path), image, "-o", str(tmp_path / "depth.png"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["height"], told["width"], told["depth_type"]) == (*photo.shape[:2], "relative")
    assert main(["depth", str(path), image, "-o", str(tmp_path / "depth.npy")]) == 0
    assert "larger is nearer" in capsys.readouterr().out
    depth = np.load(tmp_path / "depth.npy")
    assert (float(depth.min()), float(depth.max())) == (told["smallest"], told["largest"])
    with Image.open(tmp_path / "depth.png") as picture:
        grey = np.asarray(picture)
    assert grey.shape == photo.shape[:2]
    assert np.abs(grey / 255 - (depth - depth.min()) / np.ptp(depth)).max() < 0.51 / 255


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.png", "-o", "d.png"], "nowhere.png"),
        (["photo.png", "-o", "d.xyz"], "unknown suffix; use .png"),
        (["photo.png", "-o", "no/d.png"], "its folder does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, arguments, says, capsys, monkeypatch) -> None:
    monkeypatch.chdir(folder[0])
    assert main(["depth", ".", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in error


def test_what_is_no_depth_model_is_refused(folder, tmp_path) -> None:
    config = json.loads((folder[0] / "config.json").read_text())
    tensors = build().state_dict()
    with pytest.raises(ConversionError, match="is no depth model: its config says model_type 'dinov2'"):
        load_depth(tensors, config["backbone_config"])
    with pytest.raises(ConversionError, match="rotary='yes'"):
        load_depth(tensors, {**config, "rotary": "yes"})
    lacking = {name: tensor for name, tensor in tensors.items() if name != "head.conv2.bias"}
    with pytest.raises(ConversionError, match=r"missing: head\.conv2\.bias"):
        load_depth(lacking, config)
    with pytest.raises(ConversionError, match=r"unexpected: head\.extra"):
        load_depth({**tensors, "head.extra": tensors["head.conv2.bias"]}, config)
