"""OpenMMLab's names: every kind of its ViTs agrees with a restatement of its code, and round-trips bit for bit."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.agreement import assert_agrees, assert_same_tensors, load_strictly, run_flax, run_torch
from parity_tests.mmpretrain_original import Classifier, Options
from parity_tests.random_weights import randomise
from vit_flax.cli.main import main

KINDS = {
    "token": Options(),
    "average": Options(average=True),
    "deit": Options(dist_token=True),
    "deit3": Options(deit3=True),
    "clip": Options(pre_norm=True, norm_eps=1e-5),
    "gated": Options(gated=True),
    "mmseg": Options(mmseg=True),
    "hidden head": Options(hidden_head=8),
    "linear head": Options(linear_head=True),
    "beit": Options(beit=True, average=True),
    "beit, class token": Options(beit=True),
}
IMAGES = np.random.default_rng(0).normal(size=(2, 12, 8, 3))


def _model(options: Options) -> Classifier:
    model = Classifier(options).double().eval()
    randomise(model)
    return model


def _told(options: Options) -> dict[str, Any]:
    told: dict[str, Any] = {"num_heads": options.heads, "image_size": (12, 8)}
    if options.beit:
        return told | ({} if options.average else {"global_pool": "token"})
    return told | {"norm_eps": options.norm_eps, "activation": "silu" if options.gated else "gelu"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_agrees_and_comes_back(kind: str) -> None:
    options = KINDS[kind]
    theirs = _model(options)
    tensors = {"state_dict": theirs.state_dict(), "meta": {"epoch": 3}}
    model, params = vit_flax.from_state_dict(tensors, **_told(options))
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))
    layout = "mmpretrain_beit" if options.beit else "mmpretrain"
    written = vit_flax.to_state_dict(model, params, layout)
    if options.mmseg or options.linear_head:  # which are written as mmpretrain has them
        same = _model(dataclasses.replace(options, mmseg=False, linear_head=False))
        load_strictly(same, written)
        assert_agrees(run_torch(same, IMAGES), run_torch(theirs, IMAGES))
    else:
        expected = {name: t for name, t in theirs.state_dict().items() if "position_index" not in name}
        assert_same_tensors(written, expected)


def test_inside_a_segmenter_and_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = {f"backbone.{name}": t for name, t in _model(Options()).backbone.state_dict().items()}
    file = tmp_path / "segmenter.pth"
    torch.save({"state_dict": {**backbone, "decode_head.conv_seg.weight": torch.zeros(2)}}, file)
    assert main(["inspect", str(file)]) == 1
    said = capsys.readouterr()
    assert "left out state_dict/decode_head (1 tensor)" in said.err
    asked = "pass --set num_heads=N, --set image_size=HEIGHT,WIDTH, --set norm_eps=EPSILON"
    assert asked in said.out
    told = ["num_heads=2", "image_size=12,8", "norm_eps=1e-6", "activation=gelu"]
    options = [word for setting in told for word in ("--set", setting)]
    target = tmp_path / "timm.safetensors"
    assert main(["convert", str(file), str(target), "--layout", "timm", *options]) == 0
    assert "left out state_dict/decode_head" in capsys.readouterr().err
    model, params = vit_flax.load(str(target))
    theirs, theirs_params = vit_flax.from_state_dict(backbone, num_heads=2, image_size=(12, 8), norm_eps=1e-6,
                                                     activation="gelu")  # fmt: skip
    assert_agrees(run_flax(model, params, IMAGES, "features"), run_flax(theirs, theirs_params, IMAGES, "features"))


def test_both_norms_behind_the_blocks_are_refused() -> None:
    tensors = _model(Options(average=True)).state_dict()
    tensors |= {"backbone.ln1.weight": torch.ones(16), "backbone.ln1.bias": torch.zeros(16)}
    with pytest.raises(vit_flax.ConversionError, match=r"unexpected: ln1\.weight"):
        vit_flax.from_state_dict(tensors, **_told(Options()))
