"""Families that differ by names and table rows, against transformers: loaded, computed, resized, converted back.

One tiny model per family is loaded from files as transformers saves them, in both spellings, and from memory.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vit_flax
from parity_tests.agreement import (
    assert_agrees,
    assert_differs,
    assert_rows_agree,
    assert_same_tensors,
    load_strictly,
    quick,
    run_flax,
    wrongly_converted,
)
from parity_tests.huggingface_test import SHAPE, SIZES, outputs, transformers
from parity_tests.random_weights import random_images, randomise, relative_error
from vit_flax.convert import get_layout
from vit_flax.parity import compare_components, compare_gradients, subject_of
from vit_flax.parity.tolerances import FLOAT32_RELATIVE, SEEN
from vit_flax.parity.wrong_tensors import Wrong, changed, exchanged

FILE, PREFIX = "model.safetensors", re.compile(r"^(vision_model|vision_encoder|vit)\.")
SMALL = {**SIZES, "num_hidden_layers": 2}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}

# name: (class, attributes, layout of its files, layout of its memory)
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "metaclip_2": ("MetaClip2VisionModel", SMALL, "clip", "clip_memory"),
    "metaclip_2, projection": ("MetaClip2VisionModelWithProjection", {**SMALL, "projection_dim": 5}, "clip", "clip"),
    "chinese_clip": ("ChineseCLIPVisionModel", SMALL, "clip", "clip_memory"),
    "altclip": ("AltCLIPVisionModel", {**SMALL, "hidden_act": "gelu"}, "altclip", "clip_memory"),
    "clipseg": ("CLIPSegVisionModel", SMALL, "clip", "clip_memory"),
    "owlvit": ("OwlViTVisionModel", SMALL, "owlvit", "owlvit"),
    "owlv2": ("Owlv2VisionModel", SMALL, "owlvit", "owlvit"),
    "vit_msn": ("ViTMSNModel", SMALL, "vit", "vit_memory"),
    "vit_msn, classifier": ("ViTMSNForImageClassification", {**SMALL, "num_labels": 3}, "vit", "vit_memory"),
    "data2vec": ("Data2VecVisionModel", {**SMALL, "use_relative_position_bias": True}, "data2vec", "data2vec"),
    "data2vec, classifier": (
        "Data2VecVisionForImageClassification",
        {**SMALL, "num_labels": 3, "use_shared_relative_position_bias": True},
        "data2vec",
        "data2vec",
    ),
    "mlcd": ("MLCDVisionModel", SMALL, "mlcd", "mlcd_memory"),
    "aimv2": ("Aimv2VisionModel", {**SMALL, "use_head": False}, "aimv2", "aimv2"),
    "aimv2, head": ("Aimv2VisionModel", {**SMALL, "qkv_bias": True, "mlp_bias": True}, "aimv2", "aimv2"),
    "aimv2, native": ("Aimv2VisionModel", {**SMALL, "is_native": True}, "aimv2", "aimv2"),
    "internvl": ("InternVLVisionModel", {**SMALL, "patch_size": [8, 4]}, "internvl", "internvl"),
    "internvl, class token": (
        "InternVLVisionModel",
        {**SMALL, "use_mean_pooling": False, "attention_bias": True, "use_mask_token": True},
        "internvl",
        "internvl",
    ),
    "pixio": ("PixioModel", {**SHAPE, "n_cls_tokens": 3}, "pixio", "pixio_memory"),
    "tipsv2": ("Tipsv2VisionModel", {**SHAPE, "mlp_ratio": 1.5, "num_register_tokens": 2}, "tipsv2", "tipsv2_memory"),
    "tipsv2, gated": ("Tipsv2VisionModel", {**SHAPE, "use_swiglu_ffn": True}, "tipsv2", "tipsv2_memory"),
    "radio": (
        "RadioModel",
        {**SHAPE, "max_img_size": 16, "num_cls_tokens": 3, "num_registers": 2, "summary_idxs": [0, 2]},
        "radio",
        "radio_memory",
    ),
    "radio, gated": (
        "RadioModel",
        {**SHAPE, "max_img_size": 16, "use_swiglu_ffn": True},
        "radio",
        "radio_memory",
    ),
}


def published(name: str) -> str:
    """Returns a name without the tower's, which transformers writes if it read it, and TIPSv2's as it was published."""
    return PREFIX.sub("", name).replace("mlp.c_fc", "mlp.fc1").replace("mlp.c_proj", "mlp.fc2")


def build(case: str) -> tuple[Any, np.ndarray]:
    kind, attributes, _, _ = CASES[case]
    kind = getattr(transformers, kind)
    return randomise(kind(kind.config_class(**attributes))), random_images((16, 16))


def rms_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """AIMv2's RMSNorm without its cast to float32."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@contextmanager
def exactly(theirs: Any) -> Iterator[None]:
    """Removes transformers' casts to float32 within the context.

    RADIO normalises images itself, in float32; here its images are normalised before.
    """
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        kind = transformers.models.aimv2.modeling_aimv2.Aimv2RMSNorm
        stack.enter_context(mock.patch.object(kind, "forward", rms_norm))
        if isinstance(theirs, transformers.RadioModel):
            stack.enter_context(mock.patch.object(theirs.input_conditioner, "forward", lambda pixels: pixels))
        yield


OUTPUTS = ("logits", "image_embeds", "summary", "pooler_output")


def exact_outputs(theirs: Any, images: np.ndarray) -> tuple[Any, Any]:
    """Returns tokens and pooled output in float64."""
    with exactly(theirs), torch.no_grad():
        out = theirs(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    return out.get("last_hidden_state"), next((out[name] for name in OUTPUTS if out.get(name) is not None), None)


def returning_the_output(module: Any) -> Any:
    """Returns the module with a forward that gives one array, as the parity tool needs it."""
    kind = type(module)

    def forward(self: Any, pixels: torch.Tensor) -> Any:
        out = kind.forward(self, pixels)
        # InternViT pools nothing: its larger models take the mean of the patches
        return next((out[n] for n in OUTPUTS if out.get(n) is not None), out["last_hidden_state"][:, 1:].mean(1))

    module = copy.copy(module)
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module


def assert_same(model, params, theirs, images) -> None:
    hidden, pooled = exact_outputs(theirs, images)
    if hidden is not None:
        assert_agrees(run_flax(model, params, images, "features"), hidden)
    if pooled is not None:
        assert_agrees(run_flax(model, params, images), pooled)
    assert hidden is not None or pooled is not None


# another value of what a quicker one has, too
SLOW = (
    "metaclip_2, projection", "owlv2", "vit_msn, classifier", "tipsv2, gated", "radio, gated", "internvl, class token",
    "altclip", "vit_msn", "owlvit", "mlcd",
)  # fmt: skip


@pytest.mark.parametrize("case", quick(CASES, SLOW[:6]))
def test_a_family(case, tmp_path) -> None:
    theirs, images = build(case)
    _, _, files, memory = CASES[case]
    theirs.save_pretrained(tmp_path / "old")
    theirs.save_pretrained(tmp_path / "new", save_original_format=False)
    model, params = vit_flax.load(tmp_path / "old")
    assert_same(model, params, theirs, images)
    for again, same in (
        vit_flax.load(tmp_path / "new"),
        vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict()),
    ):
        assert again.config == model.config
        assert_same_tensors(*({k: np.asarray(v) for k, v in flat(p).items()} for p in (same, params)))
    # back, to the bit
    ours, saved = vit_flax.to_state_dict(model, params, f"huggingface_{files}"), load_file(tmp_path / "old" / FILE)
    assert_same_tensors({published(n): a for n, a in ours.items()}, {published(n): a for n, a in saved.items()})
    load_strictly(theirs, vit_flax.to_state_dict(model, params, f"huggingface_{memory}"))
    # and a file written here is what transformers reads
    vit_flax.save(tmp_path / "ours", model, params, layout=f"huggingface_{files}")
    reread, info = type(theirs).from_pretrained(tmp_path / "ours", config=theirs.config, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_tensors({k: v.numpy() for k, v in reread.state_dict().items()}, theirs.state_dict())
    assert vit_flax.load(tmp_path / "ours")[0].config == model.config


def flat(params: Any, path: str = "") -> dict[str, Any]:
    if not hasattr(params, "items"):
        return {path: params}
    return {name: leaf for key, value in params.items() for name, leaf in flat(value, f"{path}/{key}").items()}


TEXTS: dict[str, dict[str, Any]] = {
    "CLIP": {**TEXT, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "ChineseCLIP": {**TEXT, "max_position_embeddings": 8},
    "AltCLIP": {**TEXT, "project_dim": 8, "max_position_embeddings": 8},
}


def larger(kind: str) -> tuple[Any, Any]:
    """Returns a model that an image tower is a part of, and that tower."""
    if kind == "Llava":
        text = transformers.LlamaConfig(**TEXT, num_key_value_heads=2)
        tower = transformers.CLIPVisionConfig(**SMALL)
        config = transformers.LlavaConfig(vision_config=tower, text_config=text, image_token_index=3)
        model = randomise(transformers.LlavaForConditionalGeneration(config))
        return model, model.model.vision_tower
    text = TEXTS.get(kind, TEXTS["CLIP"])
    name = {"CLIPSeg": "CLIPSegForImageSegmentation", "OwlViT": "OwlViTForObjectDetection"}.get(kind, f"{kind}Model")
    more = {"reduce_dim": 8, "extract_layers": [0, 1], "decoder_num_attention_heads": 2} if kind == "CLIPSeg" else {}
    config = getattr(transformers, f"{kind}Config")(vision_config=SMALL, text_config=text, projection_dim=5, **more)
    model = randomise(getattr(transformers, name)(config))
    inner = getattr(model, {"CLIPSeg": "clip", "OwlViT": "owlvit"}.get(kind, ""), model)
    return model, inner.vision_model


@pytest.mark.parametrize("kind", ["MetaClip2", "ChineseCLIP", "AltCLIP", "CLIPSeg", "OwlViT", "Llava"])
def test_the_image_tower_of_a_larger_model(kind, tmp_path) -> None:
    theirs, tower = larger(kind)
    images = random_images((16, 16))
    theirs.save_pretrained(tmp_path)
    for model, params in (
        vit_flax.load(tmp_path, tower="image"),
        vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict(), tower="image"),
    ):
        assert_agrees(run_flax(model, params, images, "features"), outputs(tower, images)[0])
        pooled = outputs(tower, images)[1]
        if model.config.num_classes:  # the projection beside the tower
            (projection,) = (m for name, m in theirs.named_modules() if name.endswith("visual_projection"))
            pooled = projection(pooled).detach()
        assert_agrees(run_flax(model, params, images), pooled)


def test_a_larger_model_with_another_tower_is_refused_by_its_name(tmp_path) -> None:
    theirs, _ = larger("Llava")
    config = theirs.config.to_dict()
    for kind, says in (
        ("pixtral", r"'llava' is not read: its blocks are a language model's"),
        ("another", r"'llava' with a vision_config of model_type 'another' is not known"),
    ):
        config["vision_config"]["model_type"] = kind
        with pytest.raises(vit_flax.ConversionError, match=says):
            vit_flax.from_state_dict(theirs.state_dict(), config=config)


# with a component that the others do not have: name, (case, layout, mutations)
COMPONENTS: dict[str, tuple[str, dict[str, Wrong]]] = {
    "mlcd": (
        "mlcd_memory",
        {
            "class token not turned": changed("class_pos_emb", np.zeros_like),
            "rows and columns exchanged": {"rope_grid_indexing": "xy"},
            "neighbouring channels turned": {"rope_rotate_half": False},
        },
    ),
    "aimv2, head": (
        "aimv2",
        {
            "keys and values exchanged": exchanged("head.k_proj", "head.v_proj"),
            "heads of the pooling": {"attn_pool_num_heads": 2},
            "gate and value exchanged": exchanged("gate_proj", "up_proj"),
            "wrong epsilon": {"norm_eps": 1e-6},
        },
    ),
    "aimv2, native": ("aimv2", {"frequencies of SimpleViT": {"pos_embed": "simple_sincos_2d"}}),
    "internvl": (
        "internvl",
        {"LayerScale dropped": changed("lambda_", np.ones_like), "norms exchanged": exchanged("_before", "_after")},
    ),
    "pixio": ("pixio_memory", {"first token alone": {"pool_tokens": (0,)}, "mean of patches": {"global_pool": "avg"}}),
    "radio": (
        "radio_memory",
        {
            "other summary": {"pool_tokens": (0, 1)},
            "mean of the summary": {"global_pool": "prefix_avg"},
            "LayerScale dropped": changed("lambda1", np.ones_like),
            "patches column by column": changed(
                "patch_projection", lambda a: a.reshape(32, 3, 8, 8).swapaxes(2, 3).reshape(32, -1)
            ),
        },
    ),
}


@pytest.mark.parametrize("case", COMPONENTS)
def test_a_wrong_conversion_is_seen(case) -> None:
    theirs, images = build(case)
    tensors, config = {n: t.numpy() for n, t in theirs.state_dict().items()}, theirs.config.to_dict()
    hidden, pooled = exact_outputs(theirs, images)
    methods = {m: e for m, e in {"features": hidden, "__call__": pooled}.items() if e is not None}
    for name, mutation in COMPONENTS[case][1].items():
        model, params = wrongly_converted(tensors, mutation, config=config)
        errors = [relative_error(run_flax(model, params, images, m), e) for m, e in methods.items()]
        assert max(errors) > SEEN, name


QUICK = ("mlcd",)  # whose parameter no other family has


@pytest.mark.parametrize("case", quick(COMPONENTS, set(COMPONENTS) - set(QUICK)))
def test_every_component_and_gradient_agrees(case) -> None:
    theirs, images = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict())
    layout, pixels = get_layout(f"huggingface_{COMPONENTS[case][0]}"), images.transpose(0, 3, 1, 2).copy()
    with exactly(theirs):
        subject = subject_of(returning_the_output(theirs), model, params, layout)
        assert_rows_agree(compare_components(subject, pixels) + compare_gradients(subject, pixels))


def resized_exactly(table: torch.Tensor, **arguments: Any) -> torch.Tensor:
    return INTERPOLATE(table.double(), **arguments)


INTERPOLATE = torch.nn.functional.interpolate
SIZES_OF = {
    "tipsv2": (24, 40), "radio": (24, 40), "pixio": (24, 40), "clipseg": (24, 40), "owlvit": (24, 40),
    "vit_msn": (24, 40), "mlcd": (24, 40), "aimv2, native": (24, 40), "internvl, class token": (24, 40),
}  # fmt: skip


@pytest.mark.parametrize("case", quick(SIZES_OF, SLOW))
def test_another_image_size(case, tmp_path) -> None:
    theirs, _ = build(case)
    with torch.no_grad():  # to numbers that are the same in float32, in which some resize tables
        for name, table in theirs.named_parameters():
            if "position" in name:
                table.copy_(table.float())
    theirs.save_pretrained(tmp_path)
    size = SIZES_OF[case]
    images = random_images(size)
    model, params = vit_flax.load(tmp_path, image_size=size)
    argument = {"interpolate_pos_encoding": True} if case in ("clipseg", "owlvit", "vit_msn") else {}
    with exactly(theirs), mock.patch.object(torch.nn.functional, "interpolate", resized_exactly), torch.no_grad():
        out = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), **argument)
    assert_agrees(run_flax(model, params, images, "features"), out["last_hidden_state"])
    if model.config.pos_embed == "learned":
        other, wrong = vit_flax.load(tmp_path, image_size=size, resample="bicubic_offset")
        assert_differs(run_flax(other, wrong, images, "features"), out["last_hidden_state"])


@pytest.mark.parametrize("case", ["pixio", "aimv2", "radio", "internvl", "mlcd"])
def test_a_model_without_a_classifier_takes_a_new_one(case) -> None:
    theirs, images = build(case)
    told = {"config": theirs.config.to_dict(), "num_classes": 5}
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told, global_pool="avg")
    assert run_flax(model, params, images).shape == (2, 5)


@pytest.mark.parametrize(
    "own", [{"do_normalize": False}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}, None]
)
def test_images_are_normalised_as_radio_does_it_in_the_model(own, tmp_path) -> None:
    theirs, _ = build("radio")
    theirs.float().save_pretrained(tmp_path / "theirs")
    size = {"size": {"height": 16, "width": 16}, "do_center_crop": False}
    processor = transformers.CLIPImageProcessor(**size, **(own or {"do_normalize": False}))
    if own is not None:
        processor.save_pretrained(tmp_path / "theirs")
    photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    with torch.no_grad():
        expected = theirs(processor(images=Image.fromarray(photo), return_tensors="pt")["pixel_values"]).summary
    model, params = vit_flax.load(tmp_path / "theirs")
    preprocessing = vit_flax.read_preprocessing(tmp_path / "theirs").for_model((16, 16), 3)
    ours = model.apply({"params": params}, preprocessing(photo)[None])
    assert relative_error(ours, expected.numpy()) < FLOAT32_RELATIVE
    vit_flax.save(tmp_path / "ours", model, params, "huggingface_radio", preprocessing)
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours", use_fast=True)
    with torch.no_grad():
        back = theirs(again(images=Image.fromarray(photo), return_tensors="pt")["pixel_values"]).summary
    assert relative_error(back.numpy(), expected.numpy()) < FLOAT32_RELATIVE
    assert vit_flax.read_preprocessing(tmp_path / "ours").mean == pytest.approx(preprocessing.mean)
