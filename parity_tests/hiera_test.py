"""SAM 2's image encoder against timm's HieraDet and transformers' Sam2VisionModel, and under Meta's names."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

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
from vit_flax.cli.main import main
from vit_flax.config import HieraViTConfig
from vit_flax.convert import ConversionError, Wish, get_layout, open_checkpoint
from vit_flax.convert.config_files import read_config
from vit_flax.convert.timm_config_file import timm_config
from vit_flax.models import build_model
from vit_flax.models.shapes import expected_shapes
from vit_flax.parity import compare_components, compare_gradients, subject_of
from vit_flax.parity.float64 import computed_in_float64
from vit_flax.parity.tolerances import SEEN
from vit_flax.parity.wrong_tensors import Wrong, changed
from vit_flax.presets import get_preset
from vit_flax.reading import read_model

timm, transformers = import_timm(), import_transformers()

# grids of 8x4 and 4x2, which windows of 3 do not divide
TWO: dict[str, Any] = {
    "hidden_size": 8, "image_size": [32, 16], "blocks_per_stage": [1, 3], "embed_dim_per_stage": [8, 16],
    "num_attention_heads_per_stage": [1, 2], "window_size_per_stage": [4, 3], "global_attention_blocks": [3],
    "window_positional_embedding_background_size": [3, 3], "num_query_pool_stages": 1,
}  # fmt: skip
# of 24x16, 12x8, 6x4 and 3x2; queries are pooled in windows that stand over the edge
FOUR: dict[str, Any] = {
    "hidden_size": 8, "image_size": [96, 64], "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 2, 4, 8], "window_size_per_stage": [8, 4, 4, 2],
    "global_attention_blocks": [3], "window_positional_embedding_background_size": [3, 5],
}  # fmt: skip
NECKS: dict[str, dict[str, Any]] = {
    "two": {"fpn_hidden_size": 8, "fpn_top_down_levels": [0, 1], "num_feature_levels": 1},
    "four": {"fpn_hidden_size": 8},
}
TRUNKS = {"two": TWO, "four": FOUR}
CASES = ("timm, two", "neck, two", "trunk, two", "timm, four", "neck, four", "trunk, four")
SLOW = ("neck, four", "trunk, two", "trunk, four")


def build(case: str) -> tuple[Any, np.ndarray, str]:
    """Returns the other library's model, images for it, and the layout of its tensors."""
    kind, name = case.split(", ")
    trunk = TRUNKS[name]
    images = random_images(tuple(trunk["image_size"]))
    if kind == "timm":
        doubled = name == "four"
        theirs = timm.models.hieradet_sam2.HieraDet(
            embed_dim=8, num_heads=1, stages=tuple(trunk["blocks_per_stage"]), q_pool=3 if doubled else 1,
            window_spec=tuple(trunk["window_size_per_stage"]),
            global_att_blocks=tuple(trunk["global_attention_blocks"]),
            global_pos_size=tuple(trunk["window_positional_embedding_background_size"]),
            num_classes=0 if doubled else 5, init_values=None if doubled else 0.5,
        )  # fmt: skip
        return randomise(theirs), images, "timm_sam2"
    if kind == "trunk":
        config = transformers.Sam2HieraDetConfig(**trunk)
        return randomise(transformers.models.sam2.modeling_sam2.Sam2HieraDetModel(config)), images, "huggingface_sam2"
    dims = trunk["embed_dim_per_stage"]
    config = transformers.Sam2VisionConfig(
        backbone_config={"model_type": "sam2_hiera_det_model", **trunk}, backbone_channel_list=dims[::-1], **NECKS[name]
    )
    return randomise(transformers.Sam2VisionModel(config)), images, "huggingface_sam2"


def told(case: str) -> dict[str, Any]:
    """Returns the fields that the tensors do not determine, from the library's config."""
    kind, name = case.split(", ")
    if kind != "timm":
        return {"config": build(case)[0].config.to_dict()}
    trunk = TRUNKS[name]
    heads = [2**stage for stage in range(len(trunk["blocks_per_stage"]))]
    return {"stage_heads": tuple(heads), "window_sizes": tuple(trunk["window_size_per_stage"]),
            "global_attn_indexes": tuple(trunk["global_attention_blocks"]),
            "image_size": tuple(trunk["image_size"])}  # fmt: skip


def converted(case: str) -> tuple[Any, np.ndarray, str, Any, Any]:
    theirs, images, layout = build(case)
    return theirs, images, layout, *vit_flax.from_state_dict(theirs.state_dict(), **told(case))


def maps_of(theirs: Any, images: np.ndarray) -> list[torch.Tensor]:
    """Returns the feature maps (B, H, W, C) of transformers' neck, from fine to coarse."""
    with computed_in_float64(theirs):
        return [level.permute(0, 2, 3, 1) for level in run_torch(theirs, images)["fpn_hidden_states"]]


def tokens_of(theirs: Any, images: np.ndarray) -> torch.Tensor:
    """Returns the encoder's output as tokens (B, N, C)."""
    if hasattr(theirs, "neck"):
        return maps_of(theirs, images)[-1].flatten(1, 2)
    out = run_torch(getattr(theirs, "forward_features", theirs), images)
    return (out if isinstance(out, torch.Tensor) else out["last_hidden_state"]).flatten(1, 2)


@functools.cache
def compiled(model: Any, method: str) -> Any:
    return jax.jit(partial(model.apply, method=method))


def run_flax(model: Any, params: Any, images: np.ndarray, method: str = "__call__") -> Any:
    """Returns the linen model's output, compiled once for each config."""
    return compiled(model, method)({"params": params}, jnp.asarray(images))


@pytest.mark.parametrize("case", quick(CASES, SLOW))
def test_an_encoder(case: str, tmp_path: Any) -> None:
    theirs, images, layout, model, params = converted(case)
    assert_agrees(run_flax(model, params, images, "features"), tokens_of(theirs, images))
    reread = assert_there_and_back(theirs, model, params, layout, tmp_path)
    if reread is None:
        assert_agrees(run_flax(model, params, images), run_torch(theirs, images))
    else:
        assert_agrees(run_flax(model, params, images, "features"), tokens_of(reread, images))


@pytest.mark.parametrize("case", quick(("timm, two", "neck, two", "neck, four"), ("timm, two", "neck, four")))
def test_every_component_and_gradient_agrees(case: str) -> None:
    theirs, images, layout, model, params = converted(case)
    kind, pixels = type(theirs), images.transpose(0, 3, 1, 2).copy()

    def forward(self: Any, images: torch.Tensor) -> torch.Tensor:
        out = kind.forward(self, images)
        return out if isinstance(out, torch.Tensor) else out["fpn_hidden_states"][-1].flatten(2).swapaxes(1, 2)

    theirs.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    with computed_in_float64(theirs):
        subject = subject_of(theirs, model, params, get_layout(layout))
        assert len(subject.pairs) >= 9 * model.config.depth
        assert_rows_agree(compare_components(subject, pixels) + compare_gradients(subject, pixels))


@pytest.mark.parametrize("name", ["two", pytest.param("four", marks=pytest.mark.slow)])
def test_the_maps_of_the_pyramid_and_the_tokens_of_blocks(name: str) -> None:
    theirs, images, _, model, params = converted(f"neck, {name}")
    ours, expected = run_flax(model, params, images, "feature_pyramid"), maps_of(theirs, images)
    assert len(ours) == len(expected) == model.config.pyramid_levels
    for level, other in zip(ours, expected, strict=True):
        assert_agrees(level, other)
    features, found = run_flax(model, params, images, "forward_intermediates")
    with computed_in_float64(theirs):
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            blocks = theirs.backbone(pixels, output_hidden_states=True)["hidden_states"][-model.config.depth :]
    assert_agrees(features, tokens_of(theirs, images))
    for block, other in zip(found, blocks, strict=True):
        assert_agrees(block, other)


# name: what is wrong with the tensors, or the config
MUTATIONS: dict[str, dict[str, Wrong]] = {
    "neck, two": {
        "another block sees all": {"global_attn_indexes": (2,)},
        "positions by columns": changed("pos_embed", lambda a: a.swapaxes(2, 3).copy()),
        "one window's positions by columns": changed("pos_embed_window", lambda a: a.swapaxes(2, 3).copy()),
        "no projection beside attention": changed("blocks.1.proj.weight", np.zeros_like),
        "channels of the neck the other way": changed("neck.convs.0.weight", lambda a: a[::-1].copy()),
        "patches of another kernel": changed("patch_embed.projection.weight", lambda a: a.swapaxes(2, 3).copy()),
    },
    "neck, four": {
        "other heads": {"stage_heads": (2, 4, 8, 16), "num_heads": 2},
        "other windows": {"window_sizes": (8, 4, 6, 2)},
        "nothing added from above": {"pyramid_top_down": ()},
        "a background of positions resized otherwise": {"pos_embed_fit": "bilinear"},
    },
}


@pytest.mark.parametrize("case", quick(MUTATIONS, ("neck, four",)))
def test_a_wrong_conversion_is_seen(case: str) -> None:
    theirs, images, _ = build(case)
    tensors, expected = {n: t.numpy() for n, t in theirs.state_dict().items()}, tokens_of(theirs, images)
    for name, mutation in MUTATIONS[case].items():
        model, params = wrongly_converted(tensors, mutation, **told(case))
        assert relative_error(run_flax(model, params, images, "features"), expected) > SEEN, name


def meta_names(theirs: Any) -> dict[str, Any]:
    """Returns the tensors of transformers' model as Meta's file has them, beside others of SAM 2."""
    swaps = (("backbone.", "trunk."), ("layer_norm", "norm"), ("mlp.proj_in", "mlp.layers.0"),
             ("mlp.proj_out", "mlp.layers.1"), ("patch_embed.projection", "patch_embed.proj"))  # fmt: skip
    tensors = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in swaps:
            name = name.replace(old, new)
        name = name.replace(".weight", ".conv.weight").replace(".bias", ".conv.bias") if "convs" in name else name
        tensors[f"image_encoder.{name}"] = tensor
    beside = ("maskmem_tpos_enc", "sam_mask_decoder.iou_token.weight", "memory_attention.layers.0.norm1.weight")
    return tensors | {name: torch.ones(1, 6) for name in beside}


STAGES = {"stage_heads": (1, 2, 4, 8), "window_sizes": (8, 4, 4, 2), "global_attn_indexes": (3,),
          "image_size": (96, 64)}  # fmt: skip


def test_metas_own_file(tmp_path: Any) -> None:
    theirs, images, _ = build("neck, four")
    original = meta_names(theirs)
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    torch.save({"model": original}, path)
    model, params = vit_flax.load(path, **STAGES)
    assert_agrees(run_flax(model, params, images, "features"), tokens_of(theirs, images))
    own = {name: tensor for name, tensor in original.items() if name.startswith("image_encoder.")}
    assert_same_tensors(vit_flax.to_state_dict(model, params, "segment_anything_2"), own)
    # to transformers, by the command
    settings = [f"--set={name}={','.join(map(str, value))}" for name, value in STAGES.items()]
    assert main(["convert", str(path), str(tmp_path / "folder"), "--layout", "huggingface_sam2", *settings]) == 0
    reread, info = type(theirs).from_pretrained(tmp_path / "folder", output_loading_info=True, dtype=torch.float64)
    assert not any(info.values()), info
    assert_same_tensors({n: t.numpy() for n, t in reread.state_dict().items()}, theirs.state_dict())
    wish = Wish(overrides=STAGES)
    found = read_model(open_checkpoint(path, wish), wish).to_dict()
    assert "sam_mask_decoder" in str(found["notes"])
    # without what is told it is asked for, and presets are named
    with pytest.raises(
        ConversionError, match=r"pass `stage_heads=.*`window_sizes=.*config='facebook/sam2.1-hiera-tiny'"
    ):
        vit_flax.load(path)


def test_inside_of_the_whole_model(tmp_path: Any) -> None:
    theirs, images, _ = build("neck, two")
    parts = {"prompt_encoder_config": {"hidden_size": 8, "image_size": 64, "patch_size": 16},
             "mask_decoder_config": {"hidden_size": 8, "mlp_dim": 8, "num_attention_heads": 2}}  # fmt: skip
    whole = transformers.Sam2Model(transformers.Sam2Config(vision_config=theirs.config, **parts)).double()
    whole.vision_encoder.load_state_dict(theirs.state_dict())
    whole.save_pretrained(tmp_path)
    model, params = vit_flax.load(tmp_path)
    assert_agrees(run_flax(model, params, images, "features"), tokens_of(theirs, images))
    wish = Wish()
    assert "prompt_encoder" in str(read_model(open_checkpoint(tmp_path, wish), wish).to_dict()["notes"])


@pytest.mark.parametrize("change", [{}, {"num_heads": 3, "embed_dim": 48, "stages": (1, 1, 2, 1), "num_classes": 4}])
def test_timms_config_file(change: dict[str, Any]) -> None:
    """The written config builds timm's model, and is read back."""
    config = get_preset("sam2_hiera_tiny").config
    if change:
        doubled = [2**stage for stage in range(4)]
        change |= {"stage_dims": tuple(48 * n for n in doubled), "stage_heads": tuple(3 * n for n in doubled),
                   "depth": 5, "global_attn_indexes": (3,)}  # fmt: skip
        config = config.replace(**change)
    file: Any = timm_config(config)
    assert file is not None
    read = read_config({**file, "pretrained_cfg": {"input_size": [3, *config.image_size]}}, {}, "a file")
    assert read is not None
    assert read.layout == "timm_sam2"
    assert HieraViTConfig(**read.fields) == config
    with torch.device("meta"):
        theirs = timm.create_model(file["architecture"], num_classes=config.num_classes, **file["model_args"])
    count = sum(int(np.prod(shape)) for shape in expected_shapes(build_model(config)).values())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())


def test_another_image_size() -> None:
    theirs, _, _, own, kept = converted("neck, two")
    size = (16, 48)
    images = random_images(size)
    expected = tokens_of(theirs, images)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told("neck, two"), image_size=size)
    assert_agrees(run_flax(model, params, images, "features"), expected)
    assert_agrees(run_flax(*vit_flax.at_image_size(own, kept, size), images, "features"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["neck, two", "trunk, two"])
def test_the_compare_command(case: str, tmp_path: Any) -> None:
    build(case)[0].float().save_pretrained(tmp_path)
    assert main(["compare", str(tmp_path)]) == 0


@pytest.mark.slow
def test_the_compare_command_against_timm(tmp_path: Any) -> None:
    theirs = randomise(timm.create_model("sam2_hiera_tiny", num_classes=0)).float()
    path = tmp_path / "model.pth"
    torch.save(theirs.state_dict(), path)
    sized = ["--set", "image_size=224,224", "--config", "sam2_hiera_tiny"]
    assert main(["compare", str(path), "--against", "timm", *sized]) == 0


def test_what_cannot_be_is_refused_by_name() -> None:
    theirs, _, _ = build("neck, two")
    tensors, config = theirs.state_dict(), theirs.config.to_dict()
    with pytest.raises(ConversionError, match="fpn_kernel_size=3"):
        vit_flax.from_state_dict(tensors, config={**config, "fpn_kernel_size": 3})
    with pytest.raises(ConversionError, match="only a Hiera is read"):
        vit_flax.from_state_dict(tensors, config={**config, "backbone_config": {"model_type": "timm_wrapper"}})
    with pytest.raises(ConversionError, match="a grid of 9x4 is not divided by the first stage's windows of 4"):
        vit_flax.from_state_dict(tensors, config=config, image_size=(36, 16))
    model, params = vit_flax.from_state_dict(tensors, config=config)
    with pytest.raises(ConversionError, match="neck_chans=8"):
        vit_flax.to_state_dict(model, params, "timm_sam2")
    with pytest.raises(
        ValueError,
        match="block 0 attends inside windows, which are no map of the image; ask for a layer that sees all of it: 3",
    ):
        vit_flax.attention_maps(model, params, random_images((32, 16)))
