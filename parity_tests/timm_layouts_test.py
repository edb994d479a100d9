"""timm's layout and those that share its names: required fields, refusals, and deliberate errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.agreement import assert_differs, assert_rows_agree, wrongly_converted
from parity_tests.peers import import_timm
from parity_tests.random_weights import in_float64, random_images, randomise, relative_error
from vit_flax.convert import ConversionError, get_layout, layout_for
from vit_flax.models import VisionTransformer, sincos_2d
from vit_flax.parity import compare_components, compare_gradients, subject_of
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT64_RELATIVE, SEEN
from vit_flax.parity.wrong_tensors import Tensors, Wrong, thirds_swapped

timm = import_timm()
blocks = timm.models.vision_transformer

SIZE = {"embed_dim": 32, "depth": 2, "num_heads": 4}
PROFILE = {"image_size": (48, 32), "num_heads": 4}  # what tensors do not tell, beside the numerics
PLAIN = {**PROFILE, "norm_eps": 1e-6, "activation": "gelu", "global_pool": "token"}
MANY = {"no_embed_class": False}  # where the rows could be those of a square grid, too
Arrays = dict[str, np.ndarray]


def timm_model(name: str = "vit_tiny_patch16_224", **changes: Any) -> Any:
    arguments = {**SIZE, "img_size": (48, 32), "num_classes": 5, **changes}
    return in_float64(randomise(timm.create_model(name, **arguments)))


def tensors_of(torch_model: Any) -> Arrays:
    return {name: tensor.numpy().copy() for name, tensor in torch_model.state_dict().items()}


def error(torch_model: Any, model: VisionTransformer, params: Any, method: str | None = None) -> float:
    images = random_images((48, 32))
    with torch.no_grad():
        call = torch_model.forward_features if method == "features" else torch_model
        theirs = call(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    ours = model.apply({"params": params}, jnp.asarray(images), method=method)
    return relative_error(ours, theirs)


def round_trip(model: VisionTransformer, params: Any, layout: str, tensors: Mapping[str, Any], *dropped: str) -> None:
    back = vit_flax.to_state_dict(model, params, layout)
    kept = {name for name in tensors if not name.startswith(dropped)}
    assert set(back) == kept
    assert all(np.array_equal(back[name], tensors[name]) for name in back)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers and LayerScale": {"reg_tokens": 3, "init_values": 1e-5},
    "positions for patches only": {"reg_tokens": 2, "no_embed_class": True},
    "no positions": {"pos_embed": "none"},
    "query and key norms": {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True},
    "pre-norm": {"pre_norm": True},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "averaged": {"global_pool": "avg", "class_token": False},
    "averaged, norm before": {"global_pool": "avg", "fc_norm": False},
    "maximum": {"global_pool": "max", "reg_tokens": 1},
    "average and maximum": {"global_pool": "avgmax", "pool_include_prefix": True},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "no norm": {"final_norm": False},
    "all tokens": {"global_pool": ""},
    "packed SwiGLU": {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": "silu", "mlp_ratio": 3},
    "SwiGLU": {"mlp_layer": timm.layers.SwiGLU, "act_layer": "silu", "scale_mlp_norm": True},
    "RMSNorm": {"norm_layer": "rmsnorm"},
    "no head": {"num_classes": 0},
    "other patches": {"patch_size": (8, 16), "in_chans": 3},
    "post-norm": {"block_fn": blocks.ResPostBlock},
    "parallel attentions": {"block_fn": blocks.ParallelThingsBlock, "init_values": 1e-5},
    "parallel scaling": {"block_fn": blocks.ParallelScalingBlock, "init_values": 1e-5, "qk_norm": True},
    "parallel scaling without bias": {"block_fn": blocks.ParallelScalingBlock, "qkv_bias": False},
    "differential": {"attn_layer": "diff", "qk_norm": True, "scale_attn_norm": True},
    "differential parallel": {"block_fn": blocks.DiffParallelScalingBlock, "qk_norm": True, "qkv_bias": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_components_and_what_tensors_tell(name: str) -> None:
    changes = VARIANTS[name]
    torch_model = timm_model(**changes)
    told = {
        "activation": changes.get("act_layer", "gelu"),
        "global_pool": changes.get("global_pool", "token") or "none",
    }
    if name == "post-norm":
        told["block"] = "res_post"  # the same names and shapes as the standard block's
    if name == "no biases":
        told["block"] = "standard"
    told["pool_include_prefix"] = changes.get("pool_include_prefix", False)
    # as are the names of models that rotate
    layout = "timm" if "pre_norm" in changes or name == "no positions" else None
    model, params = vit_flax.from_state_dict(torch_model.state_dict(), layout, **{**PLAIN, **told})
    images = random_images((48, 32)).transpose(0, 3, 1, 2).copy()
    assert_rows_agree(compare_components(subject_of(torch_model, model, params, get_layout("timm")), images))
    assert error(torch_model, model, params, "features") < FLOAT64_RELATIVE
    round_trip(model, params, "timm", tensors_of(torch_model))


def test_the_block_is_asked_for_where_two_kinds_have_the_same_tensors() -> None:
    tensors = timm_model(qkv_bias=False).state_dict()
    with pytest.raises(ConversionError, match=r"do not tell block; pass `block=NAME` \(.standard. or .res_post.\)"):
        vit_flax.from_state_dict(tensors, **PLAIN)


def test_gradients_of_a_model_with_everything() -> None:
    torch_model = timm_model(
        reg_tokens=2, init_values=1e-5, qk_norm=True, pre_norm=True, global_pool="map", pool_include_prefix=True
    )
    model, params = vit_flax.from_state_dict(
        torch_model.state_dict(), "timm", **{**PLAIN, **MANY, "pool_include_prefix": True, "global_pool": "map"}
    )
    images = random_images((48, 32)).transpose(0, 3, 1, 2).copy()
    assert_rows_agree(compare_gradients(subject_of(torch_model, model, params, get_layout("timm")), images))


def test_the_two_heads_of_a_distilled_model() -> None:
    torch_model = timm_model("deit_tiny_distilled_patch16_224")
    model, params = vit_flax.from_state_dict(torch_model.state_dict(), **PROFILE)
    assert error(torch_model, model, params) < FLOAT64_RELATIVE
    torch_model.train()
    torch_model.set_distilled_training()
    images = random_images((48, 32))
    theirs = torch_model(torch.from_numpy(images).permute(0, 3, 1, 2))
    ours = model.apply({"params": params}, jnp.asarray(images), method="both_heads")
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b.detach().numpy()) < FLOAT64_RELATIVE


def test_one_head_has_no_second() -> None:
    model = vit_flax.create_model("vit_tiny_patch16_224", **SIZE)
    with pytest.raises(ValueError, match="one head"):
        model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), method="both_heads")


# --- what is asked for ---


def test_numerics_are_not_guessed_from_timms_names() -> None:
    tensors = timm_model().state_dict()
    with pytest.raises(ConversionError) as caught:
        vit_flax.from_state_dict(tensors)
    for field in ("num_heads", "image_size", "norm_eps", "activation", "global_pool", "preset's name", "layout='deit'"):
        assert field in str(caught.value)
    with pytest.raises(ConversionError, match="do not tell norm_eps"):
        vit_flax.from_state_dict(tensors, **{k: v for k, v in PLAIN.items() if k != "norm_eps"})


@pytest.mark.parametrize("layout", ["deit", "dino", "mae"])
def test_a_repository_named_settles_the_numerics(layout: str) -> None:
    torch_model = timm_model(num_classes=0)
    model, params = vit_flax.from_state_dict(torch_model.state_dict(), layout, **PROFILE)
    assert (model.config.norm_eps, model.config.activation, model.config.global_pool) == (1e-6, "gelu", "token")
    assert error(torch_model, model, params) < FLOAT64_RELATIVE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value_skip": True}, "value_skip=True"),
        ({"qk_scale": 0.1}, "qk_scale=0.1"),
        ({"mask_token": True}, "mask_token=True"),
        ({"reg_tokens": 2, "no_embed_reg": True}, "no_embed_reg=True"),
        ({"global_pool": "token_avg"}, "global_pool='token_avg'"),
        ({"representation_size": 8}, "representation_size=8"),
        ({"head_bias": False}, "head_bias=False"),
        ({"patch_bias": False}, "patch_bias=False with pre_norm=False"),
        ({"mlp_bias": False}, "mlp_bias=False with proj_bias=True"),
        ({"dist_token": True}, "head_dist=False with dist_token=True"),
    ],
)
def test_what_timm_cannot_hold_is_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    model = vit_flax.create_model("vit_tiny_patch16_224", **{**SIZE, "image_size": 32, "depth": 1, **changes})
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    with pytest.raises(ConversionError) as caught:
        vit_flax.to_state_dict(model, params, "timm")
    assert reason in str(caught.value)


def test_a_model_without_a_table_of_positions_is_asked_for() -> None:
    # timm's DeepseekVit turns queries and keys, and none of its names says so
    tensors = {name: array for name, array in timm_model().state_dict().items() if name != "pos_embed"}
    with pytest.raises(ConversionError, match=r"no table of positions.*`layout='timm'` where there are no positions"):
        vit_flax.from_state_dict(tensors, **PLAIN)
    model, _ = vit_flax.from_state_dict(tensors, "timm", **PLAIN)
    assert model.config.pos_embed == "none"


# --- the original repositories ---


def test_deit3_names() -> None:
    torch_model = timm_model("deit3_small_patch16_224")
    tensors = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): array
        for name, array in tensors_of(torch_model).items()
    }
    with pytest.raises(ConversionError, match=r"gamma_1.*rope_ape.*pass `layout='deit3'`"):
        vit_flax.from_state_dict({"model": tensors}, **PROFILE)
    model, params = vit_flax.from_state_dict({"model": tensors}, "deit3", **PROFILE)
    assert model.config.no_embed_class
    assert error(torch_model, model, params) < FLOAT64_RELATIVE
    round_trip(model, params, "deit3", tensors)


def test_models_that_are_not_here_are_refused_by_name() -> None:
    tensors = tensors_of(timm_model())
    hybrid = {**tensors, "patch_embed.backbone.stem.conv.weight": np.zeros((4, 3, 7, 7))}
    with pytest.raises(ConversionError, match="convolutional network"):
        vit_flax.from_state_dict(hybrid, **PLAIN)
    naflex = {name.replace("patch_embed.proj", "embeds.proj"): array for name, array in tensors.items()}
    for config in (None, "vit_tiny_patch16_224"):
        with pytest.raises(ConversionError, match="timm's NaFlexVit with a convolution"):
            vit_flax.from_state_dict(naflex, config=config, **PLAIN)


def test_timm_is_no_place_for_a_table_that_is_not_stored() -> None:
    config = vit_flax.ViTConfig(class_token=False, global_pool="avg", pos_embed="simple_sincos_2d")
    assert get_layout("timm").refusals(config) == [
        "pos_embed='simple_sincos_2d' (it holds 'learned' or 'sinusoid' or 'sincos_2d' or 'none')"
    ]
    assert layout_for(config).name == "big_vision"


def test_dino_training_checkpoint() -> None:
    torch_model = timm_model(num_classes=0)
    tensors = tensors_of(torch_model)
    heads = {
        "head.mlp.0.weight": np.zeros((4, 32)),
        "head.mlp.0.bias": np.zeros(4),
        "head.last_layer.weight_g": np.zeros((6, 1)),
        "head.last_layer.weight_v": np.zeros((6, 4)),
    }
    teacher = {f"module.{n}": a for n, a in {**{f"backbone.{n}": a for n, a in tensors.items()}, **heads}.items()}
    student = {name: array + 1 for name, array in teacher.items()}
    model, params = vit_flax.from_state_dict({"teacher": teacher, "student": student}, entry="teacher", **PROFILE)
    assert error(torch_model, model, params) < FLOAT64_RELATIVE
    round_trip(model, params, "dino", tensors)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("chunked", [False, True])
def test_dinov2_names(gated: bool, registers: int, chunked: bool) -> None:
    gate = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": "silu"} if gated else {}
    torch_model = timm_model("vit_small_patch14_dinov2", num_classes=0, patch_size=16, **gate)
    tensors = tensors_of(torch_model)
    original = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3") if gated else name: array
        for name, array in tensors.items()
    }
    original["mask_token"] = np.full((1, 32), 0.5)
    if registers:
        # the original adds positions to class token and patches, then puts the registers between them; timm's model of
        # that keeps the class token's position in the class token
        original["register_tokens"] = np.random.default_rng(5).standard_normal((1, registers, 32))
        torch_model = timm_model(
            "vit_small_patch14_reg4_dinov2", num_classes=0, patch_size=16, reg_tokens=registers, **gate
        )
        folded = {
            "cls_token": tensors["cls_token"] + tensors["pos_embed"][:, :1],
            "pos_embed": tensors["pos_embed"][:, 1:],
        }
        folded = {**tensors, **folded, "reg_token": original["register_tokens"]}
        torch_model.load_state_dict({name: torch.tensor(array) for name, array in folded.items()})
    given = {
        f"blocks.0.{n.removeprefix('blocks.')}" if chunked and n.startswith("blocks.") else n: a
        for n, a in original.items()
    }
    model, params = vit_flax.from_state_dict(given, **PROFILE)
    assert error(torch_model, model, params, "features") < FLOAT64_RELATIVE
    round_trip(model, params, "dinov2", original)


def test_mae_pretraining_keeps_the_encoder() -> None:
    torch_model = timm_model(num_classes=0)
    tensors = tensors_of(torch_model)
    decoder = {
        "mask_token": (1, 1, 16),
        "decoder_pos_embed": (1, 7, 16),
        "decoder_embed.weight": (16, 32),
        "decoder_blocks.0.norm1.weight": (16,),
        "decoder_blocks.0.attn.qkv.weight": (48, 16),
        "decoder_norm.bias": (16,),
        "decoder_pred.weight": (768, 16),
    }
    given = {"model": {**tensors, **{name: np.zeros(shape) for name, shape in decoder.items()}}}
    model, params = vit_flax.from_state_dict(given, **PROFILE)
    assert model.config.pos_embed == "sincos_2d"
    assert error(torch_model, model, params) < FLOAT64_RELATIVE
    round_trip(model, params, "mae", tensors)


def test_mae_fine_tuned() -> None:
    torch_model = timm_model(global_pool="avg")
    tensors = tensors_of(torch_model)
    model, params = vit_flax.from_state_dict(tensors, "mae", **PROFILE)
    assert (model.config.global_pool, model.config.fc_norm, model.config.pos_embed) == ("avg", True, "learned")
    assert error(torch_model, model, params) < FLOAT64_RELATIVE
    round_trip(model, params, "mae", tensors)


def test_the_table_of_mae_has_timms_numbers() -> None:
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    theirs = build_sincos2d_pos_embed([3, 2], 64).numpy().reshape(6, 2, 2, 16)  # (sine, cosine), (row, column)
    ours = sincos_2d((3, 2), 64, prefix_tokens=1)[0]
    assert not ours[:1].any()
    # MAE goes through columns, then rows, with sines, then cosines of each
    assert np.allclose(ours[1:], theirs[:, :, ::-1].swapaxes(1, 2).reshape(6, 64), atol=FLOAT32_ABSOLUTE)


# --- every deliberate error shows ---


def _without_layer_scale(tensors: Tensors) -> Arrays:
    return {name: array for name, array in tensors.items() if ".ls" not in name}


def _swap_class_and_register(tensors: Tensors) -> Arrays:
    return {**tensors, "cls_token": tensors["reg_token"][:, :1], "reg_token": tensors["cls_token"]}


def _prefix_last(self: VisionTransformer, tokens: Any, spatial_shapes: None = None) -> Any:
    tokens = _ADD_PREFIX(self, tokens, spatial_shapes)
    return jnp.roll(tokens, -self.config.num_prefix_tokens, axis=1)


def _registers_last(self: VisionTransformer, tokens: Any, spatial_shapes: None = None) -> Any:
    tokens = _ADD_PREFIX(self, tokens, spatial_shapes)
    return jnp.concatenate([tokens[:, :1], tokens[:, 2:], tokens[:, 1:2]], axis=1)


_ADD_PREFIX = VisionTransformer._add_prefix
MUTATIONS: dict[str, Wrong] = {
    "q and k swapped": thirds_swapped(".attn.qkv."),
    "LayerScale dropped": _without_layer_scale,
    "epsilon of torch": {"norm_eps": 1e-5},
    "epsilon of Hugging Face": {"norm_eps": 1e-12},
    "GELU through tanh": {"activation": "gelu_tanh"},
    "GELU of CLIP": {"activation": "quick_gelu"},
    "other heads": {"num_heads": 2},
    "class token and register swapped": _swap_class_and_register,
    "averaged instead of the class token": {"global_pool": "avg"},
    "scaled by the whole width": {"qk_scale": 32**-0.5},
    "values added": {"value_skip": True},
}
PATCHES = {"class token last": _prefix_last, "register after the patches": _registers_last}


@pytest.fixture(scope="module")
def mutated() -> Any:
    torch_model = timm_model(reg_tokens=1, init_values=1e-5)
    model, params = vit_flax.from_state_dict(torch_model.state_dict(), **PLAIN)
    assert error(torch_model, model, params) < FLOAT64_RELATIVE / 1000
    return torch_model


@pytest.mark.parametrize("name", [*MUTATIONS, *PATCHES])
def test_a_deliberate_error_shows(name: str, mutated: Any) -> None:
    model, params = wrongly_converted(tensors_of(mutated), MUTATIONS.get(name, {}), **PLAIN)
    with mock.patch.object(VisionTransformer, "_add_prefix", PATCHES.get(name, _ADD_PREFIX)):
        shown = [error(mutated, model, params, method) for method in (None, "features")]
    assert max(shown) > SEEN


def test_registers_with_positions_are_not_registers_without() -> None:
    torch_model = timm_model(reg_tokens=1, no_embed_class=True)
    model, params = vit_flax.from_state_dict(torch_model.state_dict(), **PLAIN, no_embed_class=True)
    rows = np.concatenate(
        [np.random.default_rng(3).standard_normal((1, 2, 32)), np.asarray(params["pos_embed"])], axis=1
    )
    other = vit_flax.VisionTransformer(model.config.replace(no_embed_class=False))
    assert error(torch_model, model, params) < FLOAT64_RELATIVE
    assert error(torch_model, other, {**params, "pos_embed": jnp.asarray(rows)}) > SEEN


def test_the_class_head_alone_is_not_the_distilled_model() -> None:
    torch_model = timm_model("deit_tiny_distilled_patch16_224")
    model, params = vit_flax.from_state_dict(torch_model.state_dict(), **PROFILE)
    images = random_images((48, 32))
    with torch.no_grad():
        theirs = torch_model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    for logits in model.apply({"params": params}, jnp.asarray(images), method="both_heads"):
        assert_differs(logits, theirs)
