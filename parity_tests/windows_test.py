"""Backbones with window attention, against timm's SAM and transformers' SAM, ViTDet and SAM 3."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.agreement import (
    assert_agrees,
    assert_rows_agree,
    assert_same_tensors,
    assert_there_and_back,
    quick,
    run_torch,
    wrongly_converted,
)
from parity_tests.peers import import_timm, import_transformers
from parity_tests.random_weights import random_images, randomise, relative_error
from vit_flax.convert import ConversionError, Wish, get_layout, open_checkpoint
from vit_flax.parity import compare_components, compare_gradients, subject_of
from vit_flax.parity.tolerances import SEEN
from vit_flax.parity.wrong_tensors import Wrong, changed, exchanged
from vit_flax.reading import read_model

timm, transformers = import_timm(), import_transformers()

# the first block inside windows
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
VITDET = {**SMALL, "mlp_ratio": 2, "window_size": 3, "window_block_indices": [0]}
SAM3 = {**SMALL, "intermediate_size": 48, "window_size": 3, "global_attn_indexes": [1], "pretrain_image_size": 24}
SAM = {**SMALL, "mlp_dim": 48, "window_size": 3, "global_attn_indexes": [1], "output_channels": 6}
# name: (class, attributes); grids of 5x5 patches, which windows of 3 do not divide, and of others which they do
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "timm": ("timm", {"img_size": (40, 24), "window_size": 4}),
    "timm, whole windows": ("timm", {"img_size": (32, 48), "window_size": 2, "num_classes": 5, "qk_norm": True}),
    "timm, no tables": ("timm", {"img_size": (40, 24), "window_size": 4, "use_rel_pos": False, "init_values": 0.5}),
    "timm, no neck": (
        "timm",
        {"img_size": (40, 24), "window_size": 2, "neck_chans": None, "use_abs_pos": False, "num_classes": 5},
    ),
    "sam": ("SamVisionModel", {**SAM, "image_size": 40}),
    "sam, whole windows": ("SamVisionModel", {**SAM, "image_size": 50, "qkv_bias": False, "use_abs_pos": False}),
    "sam_hq": ("SamHQVisionModel", {**SAM, "image_size": 40}),
    "vitdet": (
        "VitDetModel",
        {**VITDET, "image_size": 40, "pretrain_image_size": 24, "use_relative_position_embeddings": True},
    ),
    "vitdet, whole windows": ("VitDetBackbone", {**VITDET, "image_size": [24, 48], "pretrain_image_size": 32}),
    "vitdet, no windows": (
        "VitDetModel",
        {**SMALL, "mlp_ratio": 2, "image_size": 24, "pretrain_image_size": 24, "qkv_bias": False},
    ),
    "sam3": ("Sam3ViTModel", {**SAM3, "image_size": 40}),
    # what is beyond the last whole patch is left out
    "sam3, whole windows": ("Sam3ViTModel", {**SAM3, "image_size": 50}),
}
METAS = {"img_size": (40, 40), "window_size": 3, "norm_layer": partial(torch.nn.LayerNorm, eps=1e-6)}
SLOW = ("timm, no tables", "sam, whole windows", "sam_hq", "vitdet, no windows")
LAYOUTS = {"timm": "timm_sam", "sam": "huggingface_sam", "sam_hq": "huggingface_sam", "vitdet": "huggingface_vitdet",
           "sam3": "huggingface_sam3"}  # fmt: skip


def build(case: str) -> tuple[Any, np.ndarray, str]:
    """Returns the other library's model, images for it, and the layout of its tensors."""
    kind, attributes = CASES[case] if case != "timm, Meta's" else ("timm", METAS)
    layout = LAYOUTS[case.split(",")[0]]
    if kind == "timm":
        shared = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8, "use_rel_pos": True, "neck_chans": 6}
        sam = timm.models.vision_transformer_sam.VisionTransformerSAM
        theirs = sam(**{**shared, "num_classes": 0, "global_attn_indexes": (1,), **attributes})
        return randomise(theirs), random_images(attributes["img_size"]), layout
    module = getattr(transformers, kind)
    size = attributes["image_size"]
    told = {"out_indices": [2]} if kind == "VitDetBackbone" else {}
    theirs = randomise(module(module.config_class(**attributes, **told)))
    return theirs, random_images((size, size) if isinstance(size, int) else tuple(size)), layout


def told(case: str) -> dict[str, Any]:
    """Returns the fields that the tensors do not determine, from the library's config."""
    kind, attributes = CASES[case]
    if kind != "timm":
        module = getattr(transformers, kind)
        return {"config": module.config_class(**attributes).to_dict()}
    tells = all(attributes.get(name, True) for name in ("use_rel_pos", "use_abs_pos"))
    size, window = attributes["img_size"], attributes["window_size"]
    return {} if tells else {"image_size": size, "num_heads": 4, "window_size": window, "global_attn_indexes": (1,)}


def tokens_of(theirs: Any, images: np.ndarray) -> torch.Tensor:
    """Returns the backbone's output as tokens (B, N, C)."""
    # the numbers of rows and columns are turned into angles in float32, whatever the model is in
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        out = run_torch(getattr(theirs, "forward_features", theirs), images)
    if not isinstance(out, torch.Tensor):
        out = out["feature_maps"][0] if "feature_maps" in out else out["last_hidden_state"]
    return out.flatten(2).swapaxes(1, 2) if out.ndim == 4 else out


def run_flax(model: Any, params: Any, images: np.ndarray, method: str = "__call__") -> np.ndarray:
    """Returns the linen model's output, jitted: one program instead of one per operation."""
    return np.asarray(jax.jit(partial(model.apply, method=method))({"params": params}, jnp.asarray(images)))


@pytest.mark.parametrize("case", quick(CASES, SLOW))
def test_a_trunk(case: str, tmp_path: Any) -> None:
    theirs, images, layout = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told(case))
    assert_agrees(run_flax(model, params, images, "features"), tokens_of(theirs, images))
    reread = assert_there_and_back(theirs, model, params, layout, tmp_path)
    if reread is None:
        assert_agrees(run_flax(model, params, images), run_torch(theirs, images))
    else:
        assert_agrees(run_flax(model, params, images, "features"), tokens_of(reread, images))


COMPONENTS = ("timm", "vitdet", "sam3", "sam")


@pytest.mark.parametrize("case", quick(COMPONENTS, ("vitdet", "sam")))
def test_every_component_and_gradient_agrees(case: str) -> None:
    theirs, images, layout = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told(case))
    kind, pixels = type(theirs), images.transpose(0, 3, 1, 2).copy()

    def forward(self: Any, images: torch.Tensor) -> torch.Tensor:
        out = kind.forward(self, images)
        out = out if isinstance(out, torch.Tensor) else out["last_hidden_state"]
        return out.flatten(2).swapaxes(1, 2) if out.ndim == 4 else out

    theirs.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        subject = subject_of(theirs, model, params, get_layout(layout))
        assert len(subject.pairs) >= 8 * model.config.depth
        assert_rows_agree(compare_components(subject, pixels) + compare_gradients(subject, pixels))


# name: what is wrong with the tensors or the config; errors of the code are `vit-flax compare --mutate`'s
MUTATIONS: dict[str, dict[str, Wrong]] = {
    "sam": {
        "rows and columns exchanged": exchanged("rel_pos_h", "rel_pos_w"),
        "distances the other way": changed("rel_pos", lambda a: a[::-1].copy()),
        "norms of the neck exchanged": exchanged("neck.layer_norm1", "neck.layer_norm2"),
        "no neck kernel turned": changed("neck.conv2", lambda a: a.swapaxes(2, 3).copy()),
        "positions by columns": changed("pos_embed", lambda a: a.swapaxes(1, 2).copy()),
    },
    "vitdet": {
        "rows and columns exchanged": exchanged("rel_pos_h", "rel_pos_w"),
        "another resize": {"pos_embed_fit": "bilinear"},
        "a row off": changed("position_embeddings", lambda a: np.roll(a, 1, axis=1)),
    },
    "vitdet, whole windows": {
        "another block sees all": {"global_attn_indexes": (0,)},
        "all see all": {"window_size": 0},
        "larger windows": {"window_size": 6},
    },
    "sam3": {
        "another block sees all": {"global_attn_indexes": (0,)},
        "larger windows": {"window_size": 4},
        "resized, not tiled": {"pos_embed_fit": "bicubic"},
        "another period": {"rope_theta": 100.0},
    },
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_a_wrong_conversion_is_seen(case: str) -> None:
    theirs, images, _ = build(case)
    tensors, expected = {n: t.numpy() for n, t in theirs.state_dict().items()}, tokens_of(theirs, images)
    for name, mutation in MUTATIONS[case].items():
        model, params = wrongly_converted(tensors, mutation, **told(case))
        assert relative_error(run_flax(model, params, images, "features"), expected) > SEEN, name


def inspected(path: Any) -> dict[str, Any]:
    """Returns the result of `vit-flax inspect --json`."""
    wish = Wish()
    return read_model(open_checkpoint(path, wish), wish).to_dict()


def meta_names(theirs: Any) -> dict[str, np.ndarray]:
    """Returns the tensors of timm's model as Meta's file has them, beside others of Segment Anything."""
    tensors = {name.replace(".mlp.fc", ".mlp.lin"): t.numpy() for name, t in theirs.state_dict().items()}
    beside = ("prompt_encoder.no_mask_embed.weight", "mask_decoder.iou_token.weight")
    return {f"image_encoder.{n}": a for n, a in tensors.items()} | {name: np.ones((1, 6)) for name in beside}


def test_metas_own_file(tmp_path: Any) -> None:
    theirs, images, _ = build("timm, Meta's")
    original = meta_names(theirs)
    torch.save({name: torch.tensor(array) for name, array in original.items()}, tmp_path / "sam_vit_b.pth")
    model, params = vit_flax.load(tmp_path / "sam_vit_b.pth")
    assert_agrees(run_flax(model, params, images, "features"), tokens_of(theirs, images))
    found = inspected(tmp_path / "sam_vit_b.pth")
    fates = {row["name"]: row["fate"] for row in found["tensors"]}
    assert fates["mask_decoder.iou_token.weight"] == "dropped: of masks; the image encoder is read", found["notes"]
    own = {name: array for name, array in original.items() if name.startswith("image_encoder.")}
    assert_same_tensors(vit_flax.to_state_dict(model, params, "segment_anything"), own)
    # timm's norms have another epsilon, and its names tell it
    again, _ = vit_flax.from_state_dict(theirs.state_dict())
    assert (model.config.norm_eps, again.config.norm_eps) == (1e-6, 1e-5)


def metas_sam3(theirs: Any) -> dict[str, np.ndarray]:
    """Returns the trunk of transformers' SAM 3 under Meta's names, with the table's row of a class token."""
    tensors = {name: t.numpy() for name, t in theirs.state_dict().items()}
    swaps = (("embeddings.position_embeddings", "pos_embed"), ("embeddings.patch_embeddings.projection",
             "patch_embed.proj"), ("layers.", "blocks."), ("layer_norm1", "norm1"), ("layer_norm2", "norm2"),
             ("layer_norm.", "ln_pre."), ("attention.o_proj", "attn.proj"))  # fmt: skip
    trunk = {}
    for name, array in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            array = np.concatenate([tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("attention.q_proj", "attn.qkv")
        for old, new in swaps:
            name = name.replace(old, new)
        trunk[name] = array
    first = np.random.default_rng(1).standard_normal(trunk["pos_embed"][:, :1].shape)
    trunk["pos_embed"] = np.concatenate([first, trunk["pos_embed"]], axis=1)
    return {f"detector.backbone.vision_backbone.trunk.{name}": array for name, array in trunk.items()}


@pytest.mark.parametrize("prefix", quick(["detector.backbone.", "backbone.", ""], ["backbone.", ""]))
def test_metas_own_sam3(prefix: str, tmp_path: Any) -> None:
    """SAM 3 under Meta's names equals transformers' class of the same weights with the epsilon of Meta's norms."""
    _, attributes = CASES["sam3"]
    kind = transformers.Sam3ViTModel
    theirs = randomise(kind(kind.config_class(**{**attributes, "layer_norm_eps": 1e-5})))
    trunk = metas_sam3(theirs)
    rotations = {0: np.ones((9, 4)), 1: np.ones((25, 4))}  # in a window, in the grid: only their sizes are read
    beside = {
        "detector.transformer.encoder.layers.0.norm1.weight": np.ones(4),
        "detector.backbone.vision_backbone.convs.0.conv_1x1.weight": np.ones((4, 4, 1, 1)),
        "detector.backbone.language_backbone.encoder.token_embedding.weight": np.ones((4, 4)),
        "tracker.maskmem_tpos_enc": np.ones((4, 1, 1, 4)),
    }
    start = "detector.backbone.vision_backbone.trunk."
    cis = {f"{start}blocks.{i}.attn.freqs_cis": table.astype(np.complex64) for i, table in rotations.items()}
    whole = {**trunk, **cis, **(beside if prefix.startswith("detector") else {})}
    named = {name.replace("detector.backbone.", prefix, 1): torch.tensor(array) for name, array in whole.items()}
    torch.save(named, tmp_path / "sam3.pt")
    images = random_images((40, 40))
    model, params = vit_flax.load(tmp_path / "sam3.pt")
    assert (model.config.norm_eps, model.config.window_size, model.config.pos_embed_class_row) == (1e-5, 3, True)
    assert_agrees(run_flax(model, params, images, "features"), tokens_of(theirs, images))
    assert_same_tensors(vit_flax.to_state_dict(model, params, "facebook_sam3"), trunk)
    if beside.keys() <= named.keys():
        fates = {row["name"]: row["fate"] for row in inspected(tmp_path / "sam3.pt")["tensors"]}
        assert fates["tracker.maskmem_tpos_enc"] == "dropped: of detection and tracking; the image encoder is read"
        fitted, folded, notes = vit_flax.fit_layout(model, params, "huggingface_sam3")
        assert "first row is left out" in str(notes)
        ours = vit_flax.to_state_dict(fitted, folded, "huggingface_sam3")
        assert_same_tensors(ours, theirs.state_dict())


def larger(kind: str) -> tuple[Any, Any]:
    """Returns a model that contains a backbone, and that backbone."""
    if kind == "sam":
        parts = {"prompt_encoder_config": {"hidden_size": 8, "image_size": 40, "patch_size": 8},
                 "mask_decoder_config": {"hidden_size": 8, "mlp_dim": 8, "num_attention_heads": 2}}  # fmt: skip
        vision = {**SAM, "image_size": 40, "output_channels": 8, "num_pos_feats": 4}
        theirs = randomise(transformers.SamModel(transformers.SamConfig(vision_config=vision, **parts)))
        return theirs, theirs.vision_encoder
    backbone = {**SAM3, "image_size": 40, "model_type": "sam3_vit_model"}
    sizes = {"fpn_hidden_size": 8, "scale_factors": [1.0], "backbone_feature_sizes": [[5, 5]]}
    theirs = randomise(transformers.Sam3VisionModel(transformers.Sam3VisionConfig(backbone_config=backbone, **sizes)))
    return theirs, theirs.backbone


@pytest.mark.parametrize(("kind", "left"), [("sam", "mask_decoder"), ("sam3", "neck")])
def test_the_trunk_of_a_larger_model(kind: str, left: str, tmp_path: Any) -> None:
    theirs, trunk = larger(kind)
    images = random_images((40, 40))
    theirs.save_pretrained(tmp_path)
    model, params = vit_flax.load(tmp_path)
    assert_agrees(run_flax(model, params, images, "features"), tokens_of(trunk, images))
    found = inspected(tmp_path)
    dropped = [row["name"] for row in found["tensors"] if row["fate"].startswith("dropped")]
    assert any(left in told for told in (*dropped, *found["notes"]))


def test_a_trunk_inside_of_sam3s_whole_config() -> None:
    theirs, trunk = larger("sam3")
    detector = {"model_type": "sam3", "vision_config": theirs.config.to_dict()}
    config = {"model_type": "sam3_video", "detector_config": detector}
    tensors = {f"detector_model.vision_encoder.{name}": t for name, t in theirs.state_dict().items()}
    model, params = vit_flax.from_state_dict(tensors, config=config)
    images = random_images((40, 40))
    assert_agrees(run_flax(model, params, images, "features"), tokens_of(trunk, images))


@pytest.mark.parametrize("case", quick(["timm", "vitdet", "sam3"], ["sam3"]))
def test_another_image_size(case: str) -> None:
    """The output for images of another size than the tables' is that of timm, ViTDet and SAM 3."""
    theirs, _, _ = build(case)
    size = (24, 56) if case != "sam3" else (56, 56)
    if case == "timm":
        theirs.patch_embed.img_size = None
    tensors = theirs.state_dict()
    if case == "sam3":  # which asks for the size beforehand
        theirs = type(theirs)(type(theirs.config)(**{**CASES[case][1], "image_size": size[0]})).double().eval()
        theirs.load_state_dict(tensors)
    images = random_images(size)
    model, params = vit_flax.from_state_dict(tensors, **told(case), image_size=size)
    assert_agrees(run_flax(model, params, images, "features"), tokens_of(theirs, images))
    own, kept = vit_flax.from_state_dict(tensors, **told(case))
    moved = vit_flax.at_image_size(own, kept, size)
    assert_agrees(run_flax(*moved, images, "features"), tokens_of(theirs, images))


def test_what_is_left_out_is_refused_by_name(tmp_path: Any) -> None:
    told = transformers.VitDetConfig(**{**VITDET, "image_size": 24, "residual_block_indices": [1]})
    tensors = randomise(transformers.VitDetModel(told)).state_dict()
    for config in ({}, {"config": told.to_dict()}):
        with pytest.raises(ConversionError, match=r"convolutions after some of its blocks|residual_block_indices"):
            vit_flax.from_state_dict(tensors, **config)
    # a norm before the blocks
    sam = timm.models.vision_transformer_sam.VisionTransformerSAM
    other = sam(16, 8, embed_dim=16, depth=1, num_heads=2, use_rel_pos=True, window_size=2, pre_norm=True)
    with pytest.raises(ConversionError, match="has norm_pre, head"):
        vit_flax.from_state_dict(other.state_dict())
    # windows as large as the image: nothing tells which blocks have them
    same = sam(16, 8, embed_dim=16, depth=1, num_heads=2, use_rel_pos=True, window_size=2)
    with pytest.raises(ConversionError, match=r"pass `window_size=N` .*, `global_attn_indexes="):
        vit_flax.from_state_dict(same.state_dict())
    model, params = vit_flax.from_state_dict(same.state_dict(), window_size=2, global_attn_indexes=())
    with pytest.raises(
        ValueError, match="block 0 attends inside windows, which are no map of the image; no layer sees"
    ):
        vit_flax.attention_maps(model, params, random_images((16, 16)))


def test_maps_of_the_blocks_that_see_all() -> None:
    theirs, images, _ = build("sam")
    theirs.config._attn_implementation = "eager"
    config = type(theirs.config)(**CASES["sam"][1], attn_implementation="eager")
    eager = type(theirs)(config).double().eval()
    eager.load_state_dict(theirs.state_dict())
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told("sam"))
    (ours,) = vit_flax.attention_maps(model, params, images, [1]).values()
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = eager(pixels, output_attentions=True).attentions[1]
    # softmax in float32, whatever the model is in
    assert relative_error(ours, expected.reshape(ours.shape)) < 1e-6


def detectron2_names(theirs: Any) -> dict[str, torch.Tensor]:
    """Returns the tensors of transformers' ViTDet as detectron2 names them."""
    swaps = (("embeddings.position_embeddings", "pos_embed"), ("embeddings.projection", "patch_embed.proj"),
             ("encoder.layer", "blocks"), (".attention.", ".attn."))  # fmt: skip
    trunk = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in swaps:
            name = name.replace(old, new)
        trunk[name] = tensor
    return trunk


def test_detectron2s_names(tmp_path: Any) -> None:
    """ViTDet's as its own library has it, in a detector; judged by transformers' class of the same weights."""
    theirs, images, _ = build("vitdet")
    trunk = detectron2_names(theirs)
    beside = {"backbone.simfp_4.0.weight": torch.ones(4, 4, 1, 1), "roi_heads.box.fc1.weight": torch.ones(4, 4)}
    torch.save({"model": {**{f"backbone.net.{n}": t for n, t in trunk.items()}, **beside}}, tmp_path / "model.pth")
    model, params = vit_flax.load(tmp_path / "model.pth")
    expected = vit_flax.from_state_dict(theirs.state_dict(), **told("vitdet"))[0].config
    assert model.config == expected
    assert_agrees(run_flax(model, params, images, "features"), tokens_of(theirs, images))
    assert_same_tensors(vit_flax.to_state_dict(model, params, "detectron2"), trunk)
    assert "simfp_4" in str(inspected(tmp_path / "model.pth")["notes"])
