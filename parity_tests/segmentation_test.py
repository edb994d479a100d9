"""Linear segmentation: the head, its loss and its training step against torch; files both ways; the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import vit_flax
from parity_tests.agreement import assert_agrees, assert_differs, assert_same_tensors
from vit_flax import ViTConfig
from vit_flax.cli.main import main
from vit_flax.convert import ConversionError, from_mapping, read_checkpoint, write_checkpoint
from vit_flax.models import build_model
from vit_flax.models.segmentation_head import STATISTICS
from vit_flax.train.data.drawn_shapes import CLASSES
from vit_flax.train.data.mask_folder import IGNORED
from vit_flax.train.segmentation import Scores, head_tensors, head_variables, segmentation_loss

WIDTH, COUNT = 6, 4


class Reference(torch.nn.Module):
    """DINOv2's head, with its names."""

    def __init__(self) -> None:
        super().__init__()
        self.decode_head = torch.nn.ModuleDict(
            {"bn": torch.nn.BatchNorm2d(WIDTH), "conv_seg": torch.nn.Conv2d(WIDTH, COUNT, 1)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode_head["conv_seg"](self.decode_head["bn"](x))


@pytest.fixture
def case() -> Any:
    torch.manual_seed(0)
    theirs = Reference().double()
    with torch.no_grad():
        for tensor in (*theirs.parameters(), *theirs.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    rng = np.random.default_rng(0)
    grids = rng.standard_normal((3, 2, 3, WIDTH))
    labels = rng.integers(0, COUNT, (3, 8, 9))
    labels[0, :3] = IGNORED
    return theirs, grids, labels


def channels_first(grids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(grids.transpose(0, 3, 1, 2).copy())


def test_the_head_and_a_training_step_agree_with_torch_and_go_back(case, tmp_path) -> None:
    theirs, grids, labels = case
    tensors = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
    head, variables = head_variables(from_mapping(tensors))
    kept = {name: array for name, array in tensors.items() if "num_batches" not in name}
    assert_same_tensors(head_tensors(variables), kept)
    for name in ("head.orbax", "head.npz", "head.msgpack"):
        write_checkpoint(tmp_path / name, head_tensors(variables), {})
        assert_same_tensors(head_tensors(head_variables(read_checkpoint(tmp_path / name))[1]), kept)
    theirs.eval()
    with torch.no_grad():
        expected = theirs(channels_first(grids)).numpy().transpose(0, 2, 3, 1)
    assert_agrees(head.apply(variables, grids), expected)
    theirs.train()
    pixels = channels_first(grids).requires_grad_()
    large = torch.nn.functional.interpolate(theirs(pixels), size=labels.shape[1:], mode="bilinear")
    loss = torch.nn.functional.cross_entropy(large, torch.from_numpy(labels), ignore_index=IGNORED)
    loss.backward()

    def ours(params: Any, grids: Any) -> Any:
        given = {**variables, "params": params}
        logits, changed = head.apply(given, grids, train=True, mutable=[STATISTICS])
        return segmentation_loss(logits, jnp.asarray(labels)), changed

    (value, changed), (own, image) = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(
        variables["params"], jnp.asarray(grids)
    )
    assert_agrees(value, loss.item())
    assert_agrees(image.transpose(0, 3, 1, 2), pixels.grad)
    found = head_tensors({"params": own, **changed})
    for name, tensor in theirs.named_parameters():
        assert_agrees(found[name], tensor.grad)
    for name, tensor in theirs.named_buffers():
        if "num_batches" not in name:
            assert_agrees(found[name], tensor)
    wrong = jax.tree.map(jnp.ones_like, variables[STATISTICS])
    assert_differs(head.apply({**variables, STATISTICS: wrong}, grids), expected)
    with pytest.raises(ConversionError, match=r"missing: decode_head\.bn\.running_var"):
        head_variables(from_mapping({n: a for n, a in kept.items() if "running_var" not in n}))


def test_scores_are_of_pixels_that_have_a_class() -> None:
    scores = Scores(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert scores.iou[:2].tolist() == [3 / 4, 4 / 5]
    assert np.isnan(scores.iou[2])
    assert (scores.mean_iou, scores.accuracy) == ((3 / 4 + 4 / 5) / 2, 7 / 8)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    """Returns the file of a small random ViT."""
    config = ViTConfig(image_size=64, patch_size=4, embed_dim=48, depth=1, num_heads=3, num_classes=0)
    model = build_model(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    path = tmp_path_factory.mktemp("backbone") / "vit.safetensors"
    vit_flax.save(path, model, params, layout="timm")
    return str(path)


ARGUMENTS = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--json")


def test_a_head_learns_drawn_shapes(backbone, tmp_path, capsys) -> None:
    target = tmp_path / "head"
    assert main(["segment", backbone, "shapes", "-o", str(target), "--epochs", "4", *ARGUMENTS]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["iou"]) == set(CLASSES)
    assert told["iou"]["background"] > 0.9
    assert told["mean_iou"] > 0.35  # of background alone it would be a quarter at the most
    assert json.loads((target / "results.json").read_text())["mean_iou"] == told["mean_iou"]
    with Image.open(target / "predictions.png") as picture:
        assert picture.size == (480, 960)
    head, _ = head_variables(read_checkpoint(target / "head.safetensors"))
    assert head.num_classes == len(CLASSES)


def _folder(root: Path, mask: np.ndarray) -> str:
    for split in ("train", "val"):
        for kind, array in (("images", np.zeros((8, 8, 3), np.uint8)), ("masks", mask)):
            (root / split / kind).mkdir(parents=True)
            Image.fromarray(array).save(root / split / kind / "a.png")
    return str(root)


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("no folder", "there is no such folder; a split has images/ and masks/"),
        ("no mask", "no a.png for a.png"),
        ("colours", "a mask has one channel of class numbers, this image is of mode RGB"),
        ("names", "has class 3, and classes.txt names 2 (0 to 1)"),
    ],
)
def test_mistakes_in_a_folder_are_told_in_one_line(mistake, says, backbone, tmp_path, capsys) -> None:
    mask = np.full((8, 8, 3) if mistake == "colours" else (8, 8), 3, np.uint8)
    data = str(tmp_path / "nowhere") if mistake == "no folder" else _folder(tmp_path / "data", mask)
    if mistake == "no mask":
        (tmp_path / "data" / "val" / "masks" / "a.png").unlink()
    if mistake == "names":
        (tmp_path / "data" / "classes.txt").write_text("one\ntwo\n")
    assert main(["segment", backbone, data, "-o", str(tmp_path / "out"), *ARGUMENTS]) == 2
    assert says in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_mistake_leaves_no_drawn_shapes_in_the_way(backbone, tmp_path, capsys) -> None:
    target = tmp_path / "out"
    for checkpoint, more, says in (
        (str(tmp_path / "nowhere.npz"), [], "no such file"),
        (backbone, ["--layers", "9"], "no block 9"),
    ):
        assert main(["segment", checkpoint, "shapes", "-o", str(target), *ARGUMENTS, *more]) == 2
        assert says in capsys.readouterr().err
        assert not target.exists()
