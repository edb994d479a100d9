"""DINOv2's linear depth heads against torch: loaded, computed at two image sizes, converted back, drawn."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import vit_flax
from parity_tests.agreement import assert_agrees, assert_differs, assert_same_tensors
from parity_tests.peers import import_transformers
from parity_tests.random_weights import random_images, randomise, relative_error
from vit_flax import ConversionError
from vit_flax.cli.main import main
from vit_flax.convert import Checkpoint
from vit_flax.convert.linear_depth_head import told_by_head
from vit_flax.linear_depth import (
    build_backbone,
    estimate_linear_depth,
    head_state_dict,
    linear_depth_at_image_size,
    load_linear_depth,
    save_head,
)
from vit_flax.models import linear_depth
from vit_flax.parity.tolerances import FLOAT32_RELATIVE
from vit_flax.preprocessing.evaluation import normalise
from vit_flax.presets.preset import IMAGENET

transformers: Any = import_transformers()
WIDTH, BINS, PATCH = 16, 9, 7
INTERPOLATE = torch.nn.functional.interpolate


class Reference(torch.nn.Module):
    """A transformers backbone under a head of the published names, computed as in DINOv2's code."""

    def __init__(self, depth: int, layers: tuple[int, ...], max_depth: float) -> None:
        super().__init__()
        config = transformers.Dinov2Config(
            hidden_size=WIDTH, num_hidden_layers=depth, num_attention_heads=2, image_size=28, patch_size=PATCH
        )
        self.backbone = randomise(transformers.Dinov2Model(config))
        convolution = randomise(torch.nn.Conv2d(2 * WIDTH * len(layers), BINS, 1))
        self.decode_head = torch.nn.ModuleDict({"conv_depth": convolution})
        with torch.no_grad():  # a table that is resized in float32 by its own library
            table = self.backbone.embeddings.position_embeddings
            table.copy_(table.float())
        self.layers, self.max_depth = layers, max_depth

    def forward(self, images: torch.Tensor, own_size: bool = False) -> torch.Tensor:
        around = [(-side % PATCH // 2, -(-(-side % PATCH) // 2)) for side in images.shape[:1:-1]]
        padded = torch.nn.functional.pad(images, [*around[0], *around[1]])
        rows, columns = (side // PATCH for side in padded.shape[2:])
        maps, hooks = {}, []
        for number in self.layers:
            block = self.backbone.encoder.layer[number]
            hooks.append(
                block.register_forward_hook(
                    lambda _, __, out, n=number: maps.__setitem__(n, out[0] if isinstance(out, tuple) else out)
                )
            )
        self.backbone(padded)
        for hook in hooks:
            hook.remove()
        parts = []
        for number in self.layers:
            tokens = maps[number].transpose(1, 2)
            patches = tokens[..., 1:].unflatten(2, (rows, columns))
            whole = torch.cat([patches, tokens[..., :1, None].expand_as(patches)], 1)
            parts.append(INTERPOLATE(whole, size=(4 * rows, 4 * columns), mode="bilinear"))
        scores = self.decode_head["conv_depth"](torch.cat(parts, 1)).relu() + 0.1
        bins = torch.linspace(0.001, self.max_depth, BINS, dtype=scores.dtype)
        depth = (scores * bins[:, None, None]).sum(1, keepdim=True) / scores.sum(1, keepdim=True)
        return INTERPOLATE(depth, size=images.shape[2:], mode="bilinear")[:, 0] if own_size else depth[:, 0]


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def head_of(theirs: Reference) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in theirs.state_dict().items() if name.startswith("decode_head.")}


def resized_exactly(table: torch.Tensor, *sizes: Any, **arguments: Any) -> torch.Tensor:
    return INTERPOLATE(table.double(), *sizes, **arguments)


@pytest.fixture(scope="module", params=[1, 4], ids=["one layer", "four layers"])
def pair(request) -> Any:
    """Returns a head on the last of two blocks, or on all of four."""
    depth, layers, farthest = (2, (1,), 10.0) if request.param == 1 else (4, (0, 1, 2, 3), 80.0)
    theirs = Reference(depth, layers, farthest)
    wish = vit_flax.convert.Wish(config=theirs.backbone.config.to_dict())
    named = {"layers": layers} if request.param == 4 else {}
    tower, head = theirs.backbone.state_dict(), head_of(theirs)
    model, params = load_linear_depth(tower, head, max_depth=farthest, wish=wish, **named)
    assert model.config.layers == layers
    return theirs, model, params


def test_depth_and_gradients_agree_at_two_sizes(pair) -> None:
    theirs, model, params = pair
    with mock.patch.object(torch.nn.functional, "interpolate", resized_exactly):
        for size in ((28, 28), (21, 42))[: 2 if len(model.config.layers) == 1 else 1]:
            images = random_images(size)
            sized, own = linear_depth_at_image_size(model, params, size)
            pixels = channels_first(images).requires_grad_()
            expected = theirs(pixels)
            weights = np.random.default_rng(0).standard_normal(expected.shape)
            theirs.zero_grad()
            (expected * torch.from_numpy(weights)).sum().backward()

            def loss(params: Any, images: Any, sized: Any = sized, weights: Any = weights) -> Any:
                depth = sized.apply({"params": params}, images)
                return (depth * weights).sum(), depth

            (_, depth), (of_params, of_image) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(own, images)
            assert_agrees(depth, expected.detach().numpy())
            assert pixels.grad is not None
            assert_agrees(of_image.transpose(0, 3, 1, 2), pixels.grad.numpy())
            for name, array in head_state_dict(of_params).items():
                assert_agrees(array, theirs.get_parameter(name).grad.numpy())  # pyright: ignore[reportOptionalMemberAccess]
            kernel = of_params["backbone"]["blocks_0"]["mlp"]["fc1"]["kernel"]
            assert_agrees(kernel.T, theirs.backbone.encoder.layer[0].mlp.fc1.weight.grad.numpy())
    assert_same_tensors(head_state_dict(params), head_of(theirs))


def _exchanged(params: Any) -> Any:
    kernel = params["head"]["conv_depth"]["kernel"]
    head = {**params["head"]["conv_depth"], "kernel": jnp.concatenate(jnp.split(kernel, 2, 2)[::-1], 2)}
    return {**params, "head": {"conv_depth": head}}


# what of the config is wrong, or what is done to parameters or code
WRONG: dict[str, Any] = {
    "tokens of another block": {"layers": (0,)},
    "another data set": {"max_depth": 80.0},
    "bins from zero": {"min_depth": 0.0},
    "class token and patch exchanged": _exchanged,
    "no least share": ("_LEAST", 0.0),
    "enlarged after the normalisation": "late",
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("pair", [1], indirect=True)
def test_a_wrong_head_is_seen(pair, name) -> None:
    theirs, model, params = pair
    images, wrong = random_images((28, 28)), WRONG[name]
    with torch.no_grad():
        expected = theirs(channels_first(images)).numpy()
    assert_agrees(model.apply({"params": params}, images), expected)
    if isinstance(wrong, dict):
        found = model.clone(config=model.config.replace(**wrong)).apply({"params": params}, images)
    elif isinstance(wrong, tuple):
        with mock.patch.object(linear_depth, *wrong):
            found = model.apply({"params": params}, images)
    elif wrong == "late":
        small = model.clone(config=model.config.replace(upsample=1)).apply({"params": params}, images)
        found = linear_depth.resize_maps(small[..., None], expected.shape[1:], corners=False)[..., 0]
    else:
        found = model.apply({"params": wrong(params)}, images)
    assert_differs(found, expected)


@pytest.mark.parametrize("pair", [1], indirect=True)
def test_a_photograph_of_any_size_is_padded_as_dinov2s_code_does(pair) -> None:
    theirs, model, params = pair
    photo = np.random.default_rng(1).integers(0, 256, (30, 45, 3), np.uint8)
    images = normalise(photo, *IMAGENET)[None].astype(np.float64)
    with torch.no_grad(), mock.patch.object(torch.nn.functional, "interpolate", resized_exactly):
        expected = theirs(channels_first(images), own_size=True)[0].numpy()
    assert_agrees(estimate_linear_depth(model, params, photo), expected)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    assert relative_error(estimate_linear_depth(model, narrow, photo), expected) < FLOAT32_RELATIVE
    assert estimate_linear_depth(model, params, photo, shorter_side=14).shape == (30, 45)
    with pytest.raises(ValueError, match=r"16,562 patches.*`shorter_side=480`"):
        estimate_linear_depth(model, params, np.zeros((7, 7 * 16562, 3), np.uint8))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Any:
    """Returns a folder: the backbone as transformers saves it, a head as published, both in one file, an image."""
    path = tmp_path_factory.mktemp("linear")
    theirs = Reference(2, (1,), 10.0).float()
    theirs.backbone.save_pretrained(path / "backbone")
    torch.save({"meta": {"epoch": 1}, "state_dict": head_of(theirs)}, path / "dinov2_vits14_nyu_linear_head.pth")
    torch.save(head_of(theirs), path / "mine.pth")
    torch.save(theirs.state_dict(), path / "both_nyu.pth")
    torch.save({"decode_head.conv_seg.weight": torch.zeros(3, WIDTH, 1, 1)}, path / "voc_linear_head.pth")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 33, 3), np.uint8)).save(path / "photo.png")
    return path


def test_the_command_takes_backbone_and_head_and_heads_are_written(files, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(files)
    asked = ["photo.png", "-o", str(tmp_path / "depth.png"), "--json"]
    assert main(["depth", "backbone", *asked, "--head", "dinov2_vits14_nyu_linear_head.pth"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["notes"] == [f"a linear head on block 1: {BINS} bins from 0.001 to 10 m"]
    assert (told["height"], told["width"], told["depth_type"]) == (20, 33, "metric")
    assert 0.001 <= told["smallest"] < told["largest"] <= 10
    assert main(["depth", "both_nyu.pth", *asked, "--config", "backbone/config.json"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    model, params = load_linear_depth("backbone", "mine.pth", max_depth=10.0)
    vit_flax.save(tmp_path / "backbone.safetensors", build_backbone(model), params["backbone"], "dinov2")
    for name in ("head.safetensors", "head", "head.orbax", "nyu.npz", "nyu.msgpack", "nyu.pth"):
        save_head(tmp_path / name, model, params)
        again, same = load_linear_depth("backbone", tmp_path / name)
        assert again.config == model.config
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same)), name
    assert main(["depth", str(tmp_path / "backbone.safetensors"), *asked, "--head", str(tmp_path / "head.orbax")]) == 0
    there = json.loads(capsys.readouterr().out)
    assert there["largest"] == pytest.approx(told["largest"], rel=1e-2)  # Meta's own way to resize positions


MISTAKES = {
    "head alone": (["dinov2_vits14_nyu_linear_head.pth"], "is a depth head alone: name the weights of its backbone"),
    "backbone alone": (["backbone"], "a backbone under one of DINOv2's linear heads needs that: --head FILE"),
    "no range": (["backbone", "--head", "mine.pth"], "pass --max-depth 10 of a head trained on NYU Depth v2"),
    "no head": (["backbone", "--head", "backbone"], "holds no depth head"),
    "segmentation": (["backbone", "--head", "voc_linear_head.pth"], "is another head than DINOv2's linear ones"),
    "layers": (["backbone", "--head", "mine.pth", "--layers", "0,1"], "reads 1 layers, and 2 are named"),
    "beyond": (
        ["backbone", "--head", "mine.pth", "--layers", "7", "--max-depth", "10"],
        "within the 2 blocks, got (7,)",
    ),
    "far": (["backbone", "--head", "mine.pth", "--max-depth", "-1"], "got min_depth=0.001, max_depth=-1.0"),
    "side": (["backbone", "--head", "mine.pth", "--shorter-side", "0"], "--shorter-side must be at least 1, got 0"),
    "without": (["backbone", "--max-depth", "10"], "--max-depth applies to a backbone under a linear head"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(files, name, capsys, monkeypatch) -> None:
    monkeypatch.chdir(files)
    (checkpoint, *more), says = MISTAKES[name]
    assert main(["depth", checkpoint, "photo.png", "-o", "d.png", *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in error


@pytest.mark.parametrize(
    "published", [(384, 12, (2, 5, 8, 11)), (1024, 24, (4, 11, 17, 23)), (1536, 40, (9, 19, 29, 39))]
)
def test_the_layers_of_published_heads_are_told_by_their_shapes(published) -> None:
    width, depth, four = published
    for layers in ((depth - 1,), four):
        shapes = {
            "decode_head.conv_depth.weight": (256, 2 * width * len(layers), 1, 1),
            "decode_head.conv_depth.bias": (256,),
        }
        head = Checkpoint(shapes, lambda name: np.zeros(0), "hub/dinov2_vits14_kitti_linear4_head.pth")
        told = {"layers": layers, "max_depth": 80.0, "bins": 256}
        assert told_by_head(head, width, depth, None, None) == told


def test_a_head_alone_is_named_by_the_other_commands(files, capsys) -> None:
    assert main(["inspect", str(files / "mine.pth")]) == 2
    assert "it has decode_head.conv_depth.weight: a linear depth head of DINOv2" in capsys.readouterr().err


def test_heads_of_other_backbones_are_refused(pair) -> None:
    theirs, _, _ = pair
    config = theirs.backbone.config.to_dict()
    head = head_of(theirs)
    for width, count, says in ((2 * WIDTH - 2, BINS, "it is of another backbone"), (2 * WIDTH, 1, "not in bins"),
                               (6 * WIDTH, BINS, r"pass `layers=\(")):  # fmt: skip
        tensors = {**head, "decode_head.conv_depth.weight": torch.zeros(count, width, 1, 1)}
        with pytest.raises(ConversionError, match=says):
            load_linear_depth(
                theirs.backbone.state_dict(), tensors, max_depth=10, wish=vit_flax.convert.Wish(config=config)
            )
