"""The tutorial's whole models in many configurations: components, gradients, tensors that round-trip bit for bit."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from torch import nn

from parity_tests.agreement import assert_rows_agree, converted
from vit_flax.parity import compare_components, compare_gradients
from vit_flax.reference import T2T_ViT, ViT_Model

RNG = np.random.default_rng(0)

VIT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "square": ({"img_size": (1, 8, 8), "patch_size": 4}, {}),
    "wide": ({"img_size": (1, 6, 20), "patch_size": 2}, {}),
    "tall_rgb": ({"img_size": (3, 20, 8), "patch_size": 4}, {}),
    "one_patch": ({"img_size": (3, 5, 5), "patch_size": 5}, {}),
    "tutorial_patches": ({"img_size": (1, 60, 100), "patch_size": 20}, {}),
    "one_head": ({"num_heads": 1}, {}),
    "seven_heads": ({"num_heads": 7, "token_len": 42}, {}),
    "qkv_bias": ({"qkv_bias": True}, {}),
    "qk_scale": ({"qk_scale": 0.3}, {"qk_scale": 0.3}),
    "zero_qk_scale": ({"qk_scale": 0.0}, {"qk_scale": 0.0}),
    "narrow_mlp": ({"Encoding_hidden_chan_mul": 1.5}, {}),
    "odd_mlp": ({"Encoding_hidden_chan_mul": 2.71}, {}),
    "silu": ({"act_layer": nn.SiLU}, {"activation": "silu"}),
    "hardswish": ({"act_layer": nn.Hardswish}, {"activation": "hardswish"}),
    "softsign": ({"act_layer": nn.Softsign}, {"activation": "softsign"}),
    "rmsnorm": ({"norm_layer": nn.RMSNorm}, {}),
    "five_channels": ({"img_size": (5, 6, 9), "patch_size": 3}, {}),
    "everything": (
        {
            "img_size": (3, 12, 8), "patch_size": 2, "num_heads": 4, "qkv_bias": True, "qk_scale": 0.3, "depth": 3,
            "act_layer": nn.Mish, "norm_layer": nn.RMSNorm, "Encoding_hidden_chan_mul": 3.3,
        },
        {"qk_scale": 0.3, "activation": "mish"},
    ),
}  # fmt: skip

T2T: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "square": ({"img_size": (1, 32, 32), "softsplit_kernels": (7, 3, 3)}, {}),
    "wide_rgb": ({"img_size": (3, 24, 48), "softsplit_kernels": (7, 3, 3), "num_heads": 2}, {}),
    "large_kernel": ({"img_size": (1, 170, 100), "softsplit_kernels": (31, 3, 3)}, {}),
    "mixed_kernels": ({"img_size": (3, 40, 32), "softsplit_kernels": (7, 5, 3), "qkv_bias": True}, {}),
    "even_kernels": ({"img_size": (2, 33, 29), "softsplit_kernels": (4, 2, 3)}, {}),
    "scaled": ({"img_size": (1, 32, 24), "softsplit_kernels": (7, 3, 3), "qk_scale": 0.3}, {"qk_scale": 0.3}),
    "silu_rms": (
        {"img_size": (1, 24, 32), "softsplit_kernels": (7, 3, 3), "act_layer": nn.SiLU, "norm_layer": nn.RMSNorm},
        {"activation": "silu"},
    ),
    "wide_tokens": ({"img_size": (1, 32, 32), "softsplit_kernels": (5, 3, 3), "T2T_hidden_chan_mul": 2.5}, {}),
}  # fmt: skip


def _check(module: nn.Module, layout: str, size: tuple[int, int, int], **overrides: Any) -> None:
    subject, _ = converted(module, layout, image_size=size[1:], **overrides)
    images = RNG.standard_normal((2, *size))
    rows = compare_components(subject, images)
    named = {row.name.removesuffix(":input") for row in rows}
    owners = {name.rpartition(".")[0] for name, _ in module.named_parameters() if name.count(".") > 1}
    assert owners <= named, f"components with parameters that were not compared: {owners - named}"
    assert_rows_agree(rows)
    assert_rows_agree(compare_gradients(subject, images))
    assert subject.export is not None
    back, tensors = subject.export(subject.params), module.state_dict()
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].tobytes() == tensor.numpy().tobytes(), name


@pytest.fixture
def _compiling_as_users(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, users_compiler: Any) -> None:
    """Compiles one model of each kind with the passes that users have; `conftest.py` says why not all."""
    if request.node.callspec.params["name"] in ("everything", "wide_rgb"):
        monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=users_compiler))


@pytest.mark.usefixtures("_compiling_as_users")
@pytest.mark.parametrize("name", VIT)
def test_vit(name: str) -> None:
    arguments, overrides = VIT[name]
    arguments = {
        "img_size": (1, 8, 12), "patch_size": 4, "token_len": 32, "preds": 3, "num_heads": 4, "depth": 2, **arguments
    }  # fmt: skip
    module = ViT_Model(**arguments)
    _check(module, "explained", arguments["img_size"], num_heads=arguments["num_heads"], **overrides)


REPEATING = ("square", "wide_tokens", "mixed_kernels", "scaled", "silu_rms", "large_kernel")  # what others show, too


@pytest.mark.usefixtures("_compiling_as_users")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in REPEATING else n for n in T2T])
def test_t2t_vit(name: str) -> None:
    arguments, overrides = T2T[name]
    arguments = {"token_len": 32, "token_chan": 16, "preds": 2, "num_heads": 1, "depth": 2, **arguments}
    module = T2T_ViT(**arguments)
    overrides = {**overrides, "num_heads": arguments["num_heads"]}
    _check(module, "explained_t2t", arguments["img_size"], **overrides)
    kernels = arguments["softsplit_kernels"]
    told = converted(
        module, "explained_t2t", image_size=arguments["img_size"][1:], softsplit_kernels=kernels, **overrides
    )
    assert told[1].config.softsplit_kernels == kernels
