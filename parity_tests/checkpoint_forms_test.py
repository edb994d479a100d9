"""Other forms of checkpoints: replaced heads, extra tensors of pre-training, names that two families share."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import vit_flax
from parity_tests.agreement import assert_agrees, assert_differs, assert_same_tensors, run_flax, run_torch
from parity_tests.peers import import_timm, import_torchvision, import_transformers
from parity_tests.random_weights import in_float64, random_images, randomise

timm = import_timm()
SIZE: dict[str, Any] = {"embed_dim": 32, "depth": 1, "num_heads": 2}
IMAGES = random_images((32, 32))


def timm_model(name: str, **changes: Any) -> Any:
    arguments = {**SIZE, "img_size": 32, "patch_size": 16, "num_classes": 5, **changes}
    return in_float64(randomise(timm.create_model(name, **arguments)))


def tensors_of(module: Any, **renamed: str) -> dict[str, np.ndarray]:
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    for old, new in renamed.items():
        tensors = {name.replace(old, new): array for name, array in tensors.items()}
    return tensors


# --- heads that were replaced ---


def lone_heads(width: int = 32) -> dict[str, nn.Module]:
    linear = nn.Linear(width, 3)
    return {
        "a layer": linear,
        "in a sequence": nn.Sequential(linear),
        "after dropout": nn.Sequential(nn.Dropout(), nn.Linear(width, 3)),
    }


@pytest.mark.parametrize("form", ["a layer", "in a sequence", "after dropout", "within the sequence"])
def test_a_lone_layer_is_torchvisions_head(form):
    import_torchvision()
    from torchvision.models.vision_transformer import VisionTransformer

    theirs: Any = VisionTransformer(32, 16, 1, 2, 32, 64, num_classes=5)
    if form == "within the sequence":
        theirs.heads.head = lone_heads()["after dropout"]
    else:
        theirs.heads = lone_heads()[form]
    theirs = randomise(theirs)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), num_heads=2)
    assert model.config.num_classes == 3
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))


@pytest.mark.parametrize("preset", ["vit_tiny_patch16_224", "beit_base_patch16_224", "vit_small_patch16_rope_224"])
def test_a_lone_layer_is_timms_head(preset):
    theirs = timm_model(preset)
    theirs.head = lone_heads()["after dropout"]
    theirs = randomise(theirs)
    told = {**SIZE, "image_size": 32, "patch_size": 16, "num_classes": 3}
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=preset, **told)
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))


def test_a_lone_layer_is_hugging_faces_classifier():
    transformers = import_transformers()
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, num_labels=3
    )
    theirs = transformers.ViTForImageClassification(config)
    theirs.classifier = lone_heads()["after dropout"]
    theirs = randomise(theirs)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=config.to_dict())
    assert_agrees(run_flax(model, params, IMAGES), run_torch(lambda x: theirs(pixel_values=x).logits, IMAGES))


def test_several_layers_are_no_head():
    theirs = timm_model("vit_tiny_patch16_224")
    theirs.head = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 3))
    told = {**SIZE, "image_size": 32, "patch_size": 16}
    with pytest.raises(vit_flax.ConversionError, match=r"unexpected: head\.0\.weight") as raised:
        vit_flax.from_state_dict(theirs.state_dict(), config="vit_tiny_patch16_224", **told)
    assert "(head.0, head.2): pass `num_classes=0` to leave it out" in str(raised.value)
    # as it says: test_a_head_of_several_layers_gives_way_to_none


# --- extra tensors of pre-training ---

LEFT = {
    "vit_small_patch14_dinov2": {"mask_token": (1, 32), "dino_head.mlp.0.weight": (4, 32)},
    "vit_small_patch16_224.dino": {"head.mlp.2.weight": (4, 32), "head.last_layer.weight_v": (4, 4)},
    "vit_base_patch16_224.mae": {"mask_token": (1, 1, 8), "decoder_blocks.0.attn.qkv.weight": (9, 3)},
    "vit_base_patch16_224.augreg_in21k": {"masked_embed": (1, 32), "queue": (4, 8), "predictor.0.weight": (8, 32)},
    "beit_base_patch16_224": {"mask_token": (1, 1, 32), "lm_head.weight": (9, 32), "lm_head.bias": (9,)},
    "eva02_tiny_patch14_224": {"mask_token": (1, 1, 32), "lm_head.weight": (9, 32)},
    "vit_small_patch16_dinov3_qkvb": {"mask_token": (1, 1, 32)},
}


@pytest.mark.parametrize("preset", LEFT)
def test_what_only_pretraining_uses_is_left_out_though_the_preset_knows_nothing_of_it(preset):
    theirs = timm_model(preset, num_classes=0)
    left = {name: np.ones(shape) for name, shape in LEFT[preset].items()}
    told = {**SIZE, "image_size": 32, "patch_size": 16, "num_classes": 0}
    model, params = vit_flax.from_state_dict({**tensors_of(theirs), **left}, config=preset, **told)
    assert not model.config.mask_token
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))


# --- names that two families share ---

PE = "vit_pe_core_tiny_patch16_384"
TOLD: dict[str, Any] = {**SIZE, "image_size": 32, "patch_size": 16, "attn_pool_num_heads": 2, "rope_ref_grid": (2, 2)}


def perception_encoder(**changes: Any) -> Any:
    return timm_model(PE, attn_pool_num_heads=2, ref_feat_shape=(2, 2), dynamic_img_size=False, **changes)


def test_a_rotated_tower_is_never_read_as_a_plain_one():
    theirs = perception_encoder()
    plain: dict[str, Any] = {
        "num_heads": 2,
        "image_size": 32,
        "norm_eps": 1e-5,
        "activation": "gelu",
        "pool_include_prefix": True,
    }
    with pytest.raises(vit_flax.ConversionError, match=r"turn.*config=. .*layout='timm'.*layout='eva'"):
        vit_flax.from_state_dict(theirs.state_dict(), **plain)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=PE, **TOLD, num_classes=5)
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))


def as_meta_has_it(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns timm's tensors under Meta's names, the inverse of timm's checkpoint filter."""
    swaps = (
        ("attn_pool.latent", "attn_pool.probe"), ("attn_pool.norm", "attn_pool.layernorm"), ("norm_pre", "ln_pre"),
        ("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"), ("gamma_1", "ls_1.gamma"),
        ("gamma_2", "ls_2.gamma"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
        ("attn_pool.proj", "attn_pool.attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
        ("blocks.", "transformer.resblocks."), (".norm1", ".ln_1"), (".norm2", ".ln_2"),
    )  # fmt: skip
    named = {}
    for name, array in tensors.items():
        for timms, metas in swaps:
            name = name.replace(timms, metas)
        named[f"ln_post{name.removeprefix('norm')}" if name.startswith("norm.") else name] = array
    for part in ("weight", "bias") if "attn_pool.q.weight" in named else ():
        parts = [named.pop(f"attn_pool.{kind}.{part}") for kind in ("q", "kv")]
        named[f"attn_pool.attn.in_proj_{part}"] = np.concatenate(parts)
    if "cls_token" in named:
        named["class_embedding"] = named.pop("cls_token")[0, 0]
    named["positional_embedding"] = named["positional_embedding"][0]
    if "head.weight" in named:
        named["proj"] = np.ascontiguousarray(named.pop("head.weight").T)
        named.pop("head.bias")
    return {f"{prefix}{name}": array for name, array in named.items()}


@pytest.mark.parametrize(("preset", "prefix"), [(PE, "visual."), ("vit_pe_lang_large_patch14_448", "")])
@pytest.mark.parametrize("by_preset", [True, False])
def test_metas_own_names_of_the_perception_encoder(preset, prefix, by_preset):
    from timm.models.eva import checkpoint_filter_fn

    core = preset == PE
    theirs = perception_encoder() if core else timm_model(preset, ref_feat_shape=(2, 2), dynamic_img_size=False)
    if core:
        nn.init.zeros_(theirs.head.bias)  # the original multiplies by a matrix
    else:
        theirs.head = nn.Identity()
    tensors = as_meta_has_it(tensors_of(theirs), prefix)
    read = checkpoint_filter_fn({name: torch.tensor(array) for name, array in tensors.items()}, theirs)
    theirs.load_state_dict(read)  # timm's own reading of such names is the judge
    beside = {"logit_scale": np.ones(()), "transformer.resblocks.0.ln_1.weight": np.ones(4)} if core else {}
    told: dict[str, Any] = {"num_heads": 2, **({"attn_pool_num_heads": 2} if core else {"global_pool": "avg"})}
    told = {**TOLD, "rope_ref_grid": (2, 2)} if by_preset else told
    told |= {} if core else {"num_classes": 0}
    told |= {"attn_pool_num_heads": None} if by_preset and not core else {}
    config = preset if by_preset else None
    model, params = vit_flax.from_state_dict({**tensors, **beside}, config=config, **told)
    assert model.config.num_classes == (5 if core else 0)
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))
    layout = "perception_encoder" if core else "perception_encoder_tower"
    assert_same_tensors(vit_flax.to_state_dict(model, params, layout), tensors)


def test_metas_own_perception_encoder_for_another_image_size():
    theirs = timm_model("vit_pe_lang_large_patch14_448", ref_feat_shape=(2, 2), dynamic_img_size=False)
    theirs.head = nn.Identity()
    tensors, size = as_meta_has_it(tensors_of(theirs), ""), (48, 64)
    told: dict[str, Any] = {"num_heads": 2, "global_pool": "avg", "num_classes": 0, "image_size": size}
    first, table = torch.tensor(tensors["positional_embedding"]).split([1, 4])
    grid = table.reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(3, 4), mode="bilinear", align_corners=False)
    resized = torch.cat([first, grid.flatten(2)[0].T]).numpy()
    images = random_images(size)
    expected = run_flax(
        *vit_flax.from_state_dict({**tensors, "positional_embedding": resized}, source_grid=(3, 4), **told), images
    )
    assert_agrees(run_flax(*vit_flax.from_state_dict(tensors, **told), images), expected)
    other = vit_flax.from_state_dict(tensors, **told, resample="bicubic_antialias")
    assert_differs(run_flax(*other, images), expected)


@pytest.mark.parametrize("preset", ["eva02_base_patch16_clip_224", PE])
@pytest.mark.parametrize("own_projection", [False, True])
def test_a_tower_of_timms_eva_in_open_clip(preset, own_projection):
    pooled: dict[str, Any] = {"attn_pool_num_heads": 2} if preset == PE else {}
    trunk = timm_model(preset, num_classes=0 if own_projection else 5, ref_feat_shape=(2, 2), **pooled)
    theirs = nn.Module()
    theirs.visual = nn.Module()
    head = nn.Sequential()
    if own_projection:
        head.add_module("proj", nn.Linear(32, 5, bias=False))
    theirs.visual.trunk, theirs.visual.head = trunk, head
    theirs = randomise(theirs)
    in_float64(trunk)
    told = {**SIZE, "image_size": 32, "patch_size": 16, "rope_ref_grid": (2, 2), "num_classes": 5, **pooled}
    told |= {"head_bias": not own_projection}
    tensors = {**theirs.state_dict(), "text.ln_final.weight": torch.ones(3), "logit_scale": torch.ones(())}
    model, params = vit_flax.from_state_dict(tensors, config=preset, **told)
    assert_agrees(run_flax(model, params, IMAGES), run_torch(lambda x: head(trunk(x)), IMAGES))
    if not own_projection:
        assert_same_tensors(vit_flax.to_state_dict(model, params, "open_clip_eva"), theirs.state_dict())


# --- a position table for another grid than the one asked for ---


def in_double() -> Any:
    return mock.patch.object(torch.Tensor, "float", torch.Tensor.double)  # timm computes this in single precision


def resized(theirs: Any, new: tuple[int, int], old: tuple[int, int]) -> torch.Tensor:
    with in_double():
        return timm.layers.resample_abs_pos_embed(theirs.pos_embed.detach(), new, old, num_prefix_tokens=1)


@pytest.mark.parametrize("layout", ["timm", "dino", "deit", "mae"])
def test_rows_are_counted_for_the_tables_own_grid(layout):
    stored = timm_model("vit_tiny_patch16_224", img_size=112, num_classes=0)  # 7 x 7 + 1 rows, as many as 5 x 10
    theirs = timm_model("vit_tiny_patch16_224", img_size=(80, 160), num_classes=0)
    table = resized(stored, (5, 10), (7, 7))
    tensors = stored.state_dict()
    theirs.load_state_dict({**tensors, "pos_embed": table})
    told: dict[str, Any] = {"num_heads": 2, "image_size": (80, 160), "resample": "bicubic_antialias"}
    if layout == "timm":
        told |= {"norm_eps": 1e-6, "activation": "gelu", "global_pool": "token"}
        with pytest.raises(vit_flax.ConversionError, match="do not tell no_embed_class; pass `no_embed_class=BOOL`"):
            vit_flax.from_state_dict(tensors, **told)
        told |= {"no_embed_class": False}
    for grid in (None, (7, 7)):
        model, params = vit_flax.from_state_dict(tensors, layout, source_grid=grid, **told)
        images = random_images((80, 160))
        assert_agrees(run_flax(model, params, images), run_torch(theirs, images))


def test_a_table_for_either_of_two_grids_asks():
    stored = timm_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    told: dict[str, Any] = {"num_heads": 2, "image_size": (32, 128), "norm_eps": 1e-6, "activation": "gelu"}
    told |= {"global_pool": "token"}
    with pytest.raises(vit_flax.ConversionError, match=r"may be for that or for 4x4: pass `source_grid=\(2, 8\)`"):
        vit_flax.from_state_dict(stored.state_dict(), **told)
    _, params = vit_flax.from_state_dict(stored.state_dict(), source_grid=(2, 8), **told)
    assert np.array_equal(params["pos_embed"], stored.pos_embed.detach().numpy())
    _, params = vit_flax.from_state_dict(stored.state_dict(), source_grid=(4, 4), **told)
    assert_agrees(params["pos_embed"], resized(stored, (2, 8), (4, 4)).numpy())


# --- another classifier, other channels ---


@pytest.mark.parametrize("num_classes", [0, 7])
def test_another_number_of_classes_at_load(num_classes, caplog):
    theirs = timm_model("vit_tiny_patch16_224")
    told = {**SIZE, "image_size": 32, "patch_size": 16}
    model, params = vit_flax.from_state_dict(
        theirs.state_dict(), config="vit_tiny_patch16_224", num_classes=num_classes, **told
    )
    assert "classifier (left out: head.bias, head.weight)" in caplog.text
    theirs.reset_classifier(num_classes)
    if num_classes:
        theirs.head.weight.data = torch.tensor(np.asarray(params["head"]["kernel"]).T.copy())
        theirs.head.bias.data = torch.tensor(np.asarray(params["head"]["bias"]))
        assert 0 < np.abs(params["head"]["kernel"]).max() < 0.2
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))


def test_a_head_of_several_layers_gives_way_to_none():
    theirs = timm_model("vit_tiny_patch16_224")
    theirs.head = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 3)).double()
    told = {**SIZE, "image_size": 32, "patch_size": 16, "num_classes": 0}
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config="vit_tiny_patch16_224", **told)
    theirs.head = nn.Identity()
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))


@pytest.mark.parametrize("chans", [1, 4, 12])
def test_other_channels_at_load_are_timms(chans):
    from timm.models import adapt_input_conv

    stored = timm_model("vit_tiny_patch16_224")
    theirs = timm_model("vit_tiny_patch16_224", in_chans=chans)
    with in_double():
        kernel = adapt_input_conv(chans, stored.patch_embed.proj.weight.detach())
    theirs.load_state_dict({**stored.state_dict(), "patch_embed.proj.weight": kernel})
    told = {**SIZE, "image_size": 32, "patch_size": 16, "in_chans": chans}
    model, params = vit_flax.from_state_dict(stored.state_dict(), config="vit_tiny_patch16_224", **told)
    images = random_images((32, 32), chans)
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))


def test_reset_classifier_is_timms():
    theirs = timm_model("vit_tiny_patch16_224")
    told = {**SIZE, "image_size": 32, "patch_size": 16}
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config="vit_tiny_patch16_224", **told)
    other, changed = vit_flax.reset_classifier(model, params, 0, global_pool="avg")
    theirs.reset_classifier(0, "avg")
    assert_agrees(run_flax(other, changed, IMAGES), run_torch(theirs, IMAGES))
    other, changed = vit_flax.reset_classifier(other, changed, 4)
    assert run_flax(other, changed, IMAGES).shape == (2, 4)


# --- configs that have the answers ---


def hub_config(name: str, **model_args: Any) -> dict[str, Any]:
    return {"architecture": name, "model_args": {**SIZE, "img_size": 32, "patch_size": 16, **model_args}}


GATED = timm.layers.SwiGLUPacked
HUBS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "UNI": ("vit_large_patch16_224", {"init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True}, {}),
    "UNI2": (
        "vit_giant_patch14_224",
        {
            "init_values": 1e-5, "mlp_ratio": 5.0, "num_classes": 0, "no_embed_class": True, "reg_tokens": 3,
            "mlp_layer": "timm.layers.SwiGLUPacked", "act_layer": "torch.nn.SiLU", "dynamic_img_size": True,
        },
        {"mlp_layer": GATED, "act_layer": nn.SiLU},
    ),
    "GigaPath": ("vit_giant_patch14_dinov2", {"mlp_ratio": 5.33334, "num_classes": 0}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", HUBS)
def test_arguments_of_repositories_on_timms_hub(name):
    architecture, arguments, classes = HUBS[name]
    theirs = timm_model(architecture, **{**arguments, **classes})
    config = hub_config(architecture, **arguments)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=config)
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))


VIRCHOWS = {  # whose layers their readmes name
    "Virchow": {"num_classes": 0},
    "Virchow2": {"num_classes": 0, "mlp_ratio": 5.25, "reg_tokens": 4, "init_values": 1e-5, "dynamic_img_size": True},
}


@pytest.mark.parametrize("name", VIRCHOWS)
def test_what_a_repository_says_in_code_alone_is_shown_by_the_tensors_or_asked_for(name):
    arguments = VIRCHOWS[name]
    layers = {"mlp_layer": GATED, "act_layer": nn.SiLU, "init_values": 1e-5}
    theirs = timm_model("vit_huge_patch14_224", **{**arguments, **layers})
    config = hub_config("vit_huge_patch14_224", **arguments)
    with pytest.raises(vit_flax.ConversionError, match="do not tell activation"):
        vit_flax.from_state_dict(theirs.state_dict(), config=config)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=config, activation="silu")
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))


def test_timm_inside_of_transformers():
    theirs = timm_model("vit_tiny_patch16_224", init_values=1e-5)
    tensors = {f"timm_model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    config = {**hub_config("vit_tiny_patch16_224", init_values=1e-5), "model_type": "timm_wrapper", "num_classes": 5}
    model, params = vit_flax.from_state_dict(tensors, config={**config, "do_pooling": True})
    assert_agrees(run_flax(model, params, IMAGES), run_torch(theirs, IMAGES))


def test_a_backbone_of_timm_inside_of_transformers():
    transformers = import_transformers()
    config = transformers.TimmBackboneConfig(backbone="vit_tiny_patch16_224", out_indices=[1])
    theirs = randomise(transformers.TimmBackbone(config, img_size=32, **{**SIZE, "depth": 3}))
    told: dict[str, Any] = {"image_size": 32, "embed_dim": 32, "num_heads": 2}
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=config.to_dict(), **told)
    assert model.config.depth == 2
    tokens = run_flax(model, params, IMAGES, "features")[:, 1:]
    maps = run_torch(lambda x: theirs(pixel_values=x).feature_maps[-1], IMAGES)
    assert_agrees(tokens.reshape(2, 2, 2, 32), maps.permute(0, 2, 3, 1))


@pytest.mark.parametrize("pooling", [{"pool_type": "avg", "final_ln_after_pool": True}, {"pool_type": "none"}])
def test_open_clips_own_config(pooling, tmp_path):
    from parity_tests.open_clip_original import ImageCLIP

    tower = {"image_size": 24, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8, "no_ln_pre": True, **pooling}
    theirs = randomise(ImageCLIP(embed_dim=12, quick_gelu=True, **tower))
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    config = {"model_cfg": {"embed_dim": 12, "vision_cfg": tower, "text_cfg": {}, "quick_gelu": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    model, params = vit_flax.load(tmp_path)
    images = random_images((24, 24))
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))


@pytest.mark.parametrize("preset", ["vit_small_patch14_reg4_dinov2"])
def test_registers_of_the_original_with_timms_preset(preset):
    theirs = timm_model(preset, num_classes=0)
    tensors = tensors_of(theirs, reg_token="register_tokens")
    row = np.full((1, 1, 32), 0.3)
    tensors |= {"cls_token": tensors["cls_token"] - row, "mask_token": np.ones((1, 32))}
    tensors["pos_embed"] = np.concatenate([row, tensors["pos_embed"]], axis=1)
    told = {**SIZE, "image_size": 32, "patch_size": 16}
    model, params = vit_flax.from_state_dict(tensors, config=preset, **told)
    assert_agrees(run_flax(model, params, IMAGES, "features"), run_torch(theirs.forward_features, IMAGES))
