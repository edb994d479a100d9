"""The public functions of conversion on the tutorial's models: overrides, errors, files, dtypes."""

from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from parity_tests.random_weights import randomise
from vit_flax import ConversionError, ViTConfig, from_state_dict, load, save, to_state_dict
from vit_flax.convert import write_checkpoint
from vit_flax.parity.tolerances import FLOAT32_RELATIVE
from vit_flax.reference import T2T_ViT, ViT_Model

SMALL: dict[str, Any] = {
    "img_size": (3, 8, 12),
    "patch_size": 4,
    "token_len": 24,
    "preds": 5,
    "num_heads": 4,
    "depth": 2,
}
KNOWN: dict[str, Any] = {"num_heads": 4, "image_size": (8, 12)}


def _tensors() -> dict[str, torch.Tensor]:
    return randomise(ViT_Model(**SMALL)).float().state_dict()


def test_what_tensors_cannot_tell_is_asked_for_by_name() -> None:
    with pytest.raises(ConversionError, match="num_heads, image_size"):
        from_state_dict(_tensors())
    with pytest.raises(ConversionError, match="num_heads") as caught:
        from_state_dict(_tensors(), image_size=(8, 12))
    assert "image_size" not in str(caught.value)
    with pytest.raises(ConversionError, match="patch_size"):
        from_state_dict(_tensors(), num_heads=4, image_size=(9, 12))
    tensors = T2T_ViT((1, 16, 16), (5, 3, 3), 2, 16, 8, 1, depth=1).state_dict()
    with pytest.raises(ConversionError, match="num_heads, image_size"):
        from_state_dict(tensors)
    with pytest.raises(ConversionError, match="softsplit_kernels"):
        from_state_dict(tensors, num_heads=1, image_size=(99, 16))


def test_one_error_lists_missing_unexpected_and_misshapen() -> None:
    tensors = _tensors()
    del tensors["backbone.blocks.1.norm1.bias"]
    tensors["backbone.blocks.1.extra"] = torch.zeros(3)
    tensors["backbone.blocks.0.neuralnet.fc1.weight"] = torch.zeros(3, 4)
    with pytest.raises(ConversionError) as caught:
        from_state_dict(tensors, **KNOWN)
    text = str(caught.value)
    assert "missing: backbone.blocks.1.norm1.bias" in text
    assert "unexpected: backbone.blocks.1.extra" in text
    assert "misshapen: backbone.blocks.0.neuralnet.fc1.weight is (3, 4), the model needs (96, 24)" in text


@pytest.mark.parametrize("name", sorted(ViT_Model(**SMALL).state_dict()))
def test_any_missing_and_any_misshapen_tensor_is_named(name: str) -> None:
    tensors = _tensors()
    missing = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        from_state_dict(missing, **KNOWN, patch_size=4, in_chans=3)
    misshapen = {**tensors, name: torch.zeros(2, 3, 5)}
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        from_state_dict(misshapen, **KNOWN, patch_size=4, in_chans=3)


def test_overrides_win_over_config_and_unknown_ones_are_refused() -> None:
    config = ViTConfig(
        image_size=(8, 12), patch_size=(4, 4), embed_dim=24, depth=2, num_heads=2, num_classes=5, qkv_bias=False,
        value_skip=True, pos_embed="sinusoid", norm_eps=1e-5,
    )  # fmt: skip
    assert from_state_dict(_tensors(), config=config)[0].config.num_heads == 2
    assert from_state_dict(_tensors(), config=config, num_heads=4)[0].config.num_heads == 4
    assert from_state_dict(_tensors(), config=config.to_dict(), activation="silu")[0].config.activation == "silu"
    with pytest.raises(ValueError, match="did you mean 'num_heads'"):
        from_state_dict(_tensors(), nun_heads=4)
    with pytest.raises(ValueError, match="no preset named 'vit_bas_patch16_224'"):
        from_state_dict(_tensors(), config="vit_bas_patch16_224")
    with pytest.raises(ConversionError, match="unknown layout 'explaind'"):
        from_state_dict(_tensors(), layout="explaind")
    with pytest.raises(ValueError, match="unknown activation 'geluu'"):
        from_state_dict(_tensors(), **KNOWN, activation="geluu")


def test_names_of_no_layout_and_values_that_are_no_arrays() -> None:
    with pytest.raises(ConversionError, match="no known layout"):
        from_state_dict({"a.b": np.zeros(3)})
    with pytest.raises(ConversionError, match="epoch"):
        from_state_dict({**_tensors(), "epoch": 3}, **KNOWN)
    with pytest.raises(ConversionError, match=r"not plain arrays: backbone\.head\.bias"):
        from_state_dict({**_tensors(), "backbone.head.bias": torch.zeros(5).to_sparse()}, **KNOWN)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in _tensors().items()}
    model, params = from_state_dict(tensors, **KNOWN)
    back = to_state_dict(model, params, layout="explained")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes(), name
    expected = ml_dtypes.bfloat16 if dtype is torch.bfloat16 else str(dtype).removeprefix("torch.")
    assert back["backbone.norm.weight"].dtype == np.dtype(expected)


def test_float64_is_never_cut_in_silence() -> None:
    tensors = {name: tensor.double() for name, tensor in _tensors().items()}
    with jax.enable_x64(False), pytest.raises(ConversionError, match="jax_enable_x64"):
        from_state_dict(tensors, **KNOWN)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pt", ".bin", ""])
def test_files_of_every_kind_come_back(tmp_path: Path, suffix: str) -> None:
    tensors = _tensors()
    model, params = from_state_dict(tensors, **KNOWN)
    path = tmp_path / f"weights{suffix}"
    save(path, model, params)
    # safetensors and folders carry the config
    loaded, params = load(path) if suffix in (".safetensors", "") else load(path, **KNOWN)
    assert loaded.config == model.config
    back = to_state_dict(loaded, params)
    assert all(back[name].tobytes() == tensor.numpy().tobytes() for name, tensor in tensors.items())
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_torch_loads_what_we_save(tmp_path: Path) -> None:
    module = ViT_Model(**SMALL)
    model, params = from_state_dict(_tensors(), **KNOWN)
    save(tmp_path / "weights.pth", model, params, layout="explained")
    module.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True), strict=True)
    images = torch.randn(2, 3, 8, 12)
    ours = np.asarray(model.apply({"params": params}, images.numpy().transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(ours, module(images).detach().numpy(), atol=FLOAT32_RELATIVE)


def test_a_layout_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    model, params = from_state_dict(_tensors(), **KNOWN)
    with pytest.raises(ConversionError, match="T2TViTConfig"):
        to_state_dict(model, params, layout="explained_t2t")
    plain = type(model)(model.config.replace(value_skip=False))
    with pytest.raises(ConversionError, match="value_skip=False"):
        save(tmp_path / "x.safetensors", plain, params, layout="explained")
    del params["norm"]
    with pytest.raises(ConversionError, match="missing: norm/scale"):
        save(tmp_path / "x.safetensors", model, params, layout="explained")
    with pytest.raises(ConversionError, match="unknown suffix"):
        write_checkpoint(tmp_path / "x.h5", {}, {})
    assert not list(tmp_path.iterdir())


def test_detection_tells_the_two_models_apart() -> None:
    model, _ = from_state_dict(_tensors(), **KNOWN)
    assert type(model.config) is ViTConfig
    tensors = T2T_ViT((1, 16, 16), (5, 3, 3), 2, 16, 8, 1, depth=1).state_dict()
    model, _ = from_state_dict(tensors, num_heads=1, image_size=16)
    assert model.config.softsplit_kernels == (5, 3, 3)
    assert model.config.in_chans == 1


def test_wrong_images_are_refused_with_both_shapes() -> None:
    model, params = from_state_dict(_tensors(), **KNOWN)
    for images, hint in (
        (np.zeros((2, 3, 8, 12)), "channels-first"),
        (np.zeros((8, 12, 3)), "batch axis"),
        (np.zeros((2, 8, 8, 3)), r"\(2, 8, 8, 3\)"),
    ):
        with pytest.raises(ValueError, match=hint):
            model.apply({"params": params}, images)
    with pytest.raises(ValueError, match=r"batch, 6, 24"):
        model.apply({"params": params}, np.zeros((2, 7, 24)), method="backbone")
