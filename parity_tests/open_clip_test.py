"""The open_clip layouts against transformers' CLIP, a restatement of open_clip's image tower, and timm's towers."""

import numpy as np
import pytest
import torch

import vit_flax
import vit_flax.convert
import vit_flax.models
from parity_tests.agreement import (
    assert_agrees,
    assert_components_agree,
    assert_differs,
    assert_same_tensors,
    load_strictly,
    run_flax,
    run_torch,
    wrongly_converted,
)
from parity_tests.open_clip_original import ImageCLIP
from parity_tests.peers import import_timm, import_transformers
from parity_tests.random_weights import random_images, randomise
from vit_flax.convert import Wish
from vit_flax.models.shapes import expected_shapes
from vit_flax.parity.tolerances import ANOTHER_DEFINITION
from vit_flax.parity.wrong_tensors import changed, exchanged, thirds_swapped
from vit_flax.presets import get_preset
from vit_flax.presets.open_clip import OPEN_CLIP_MODELS
from vit_flax.reading import read_model

SHAPE = {"image_size": 24, "patch_size": 8, "width": 32, "layers": 2, "embed_dim": 12, "head_width": 8}
CASES = {
    "OpenAI": {"quick_gelu": True},
    "LAION": {},
    "CLIPA": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "mean of normed tokens": {"pool_type": "avg"},
    "LayerScale": {"ls_init_value": 1e-4, "mlp_ratio": 4.3637},
    "not square": {"image_size": (16, 40)},
    "no projection": {"embed_dim": 0},
}


def told(case):
    values = {
        "num_heads": 4,
        "activation": "quick_gelu" if case.get("quick_gelu") else "gelu",
        "global_pool": "avg" if case.get("pool_type") == "avg" else "token",
    }
    values |= {"norm_eps": 1e-5}
    values |= {"fc_norm": bool(case.get("final_ln_after_pool"))} if case.get("pool_type") else {}
    return values | ({"image_size": case["image_size"]} if "image_size" in case else {})


def build(name):
    case = CASES[name]
    size = case.get("image_size", (24, 24))
    return randomise(ImageCLIP(**{**SHAPE, **case})), told(case), random_images(size)


@pytest.mark.parametrize("case", CASES)
def test_agrees_in_float64_and_goes_back_bit_for_bit(case):
    theirs, values, images = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **values)
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))
    back = vit_flax.to_state_dict(model, params, layout="open_clip")
    assert_same_tensors(back, theirs.state_dict())
    load_strictly(theirs, back)


def test_a_tower_by_itself():
    theirs, values, images = build("OpenAI")
    tower = {name.removeprefix("visual."): a for name, a in theirs.state_dict().items() if name.startswith("visual.")}
    model, params = vit_flax.from_state_dict(tower, **values)
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))
    assert_same_tensors(vit_flax.to_state_dict(model, params, layout="open_clip_tower"), tower)
    assert_components_agree(theirs.visual, model, params, "open_clip_tower", images)
    name = "transformer.resblocks.1.attn.in_proj_weight"
    query, key, value = tower[name].chunk(3)
    _, params = vit_flax.from_state_dict({**tower, name: torch.cat([key, query, value])}, **values)
    assert_differs(run_flax(model, params, images), run_torch(theirs, images), ANOTHER_DEFINITION)


@pytest.mark.parametrize("case", ["OpenAI", "LayerScale"])
def test_every_component_and_gradient_agrees(case):
    theirs, values, images = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **values)
    assert_components_agree(theirs, model, params, "open_clip", images)


@pytest.mark.parametrize("size", [(16, 16), (40, 40), (16, 32)])
def test_another_image_size_as_open_clip_resizes(size):
    theirs, values, _ = build("OpenAI")
    tensors = theirs.state_dict()
    table = tensors["visual.positional_embedding"]
    grid, new_grid = table[1:].unflatten(0, (3, 3)).movedim(-1, 0)[None], (size[0] // 8, size[1] // 8)
    grid = torch.nn.functional.interpolate(grid, new_grid, mode="bicubic", antialias=True)[0].flatten(1).T
    theirs.visual.positional_embedding = torch.nn.Parameter(torch.cat([table[:1], grid]))
    model, params = vit_flax.from_state_dict(tensors, image_size=size, **values)
    images = random_images(size)
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))


HF_NAMES = (
    ("visual_projection.weight", "visual.proj"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.encoder.layers", "visual.transformer.resblocks"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("layer_norm", "ln_"),
    ("self_attn", "attn"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)


def as_open_clip(state_dict):
    """Returns transformers' tensors under OpenAI's names, the inverse of its conversion script."""
    tensors = {}
    for name, tensor in state_dict.items():
        for old, new in HF_NAMES:
            name = name.replace(old, new)
        tensors[name] = tensor.T if name == "visual.proj" else tensor
    for i in range(SHAPE["layers"]):
        start = f"visual.transformer.resblocks.{i}.attn."
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"{start}{letter}_proj.{kind}") for letter in "qkv"]
            tensors[f"{start}in_proj_{kind}"] = torch.cat(parts)
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_agrees_with_transformers(activation):
    transformers = import_transformers()
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=8,
        projection_dim=12, hidden_act=activation,
    )  # fmt: skip
    theirs = randomise(transformers.CLIPVisionModelWithProjection(config))
    tensors = as_open_clip(theirs.state_dict())
    model, params = vit_flax.from_state_dict(
        tensors, num_heads=4, activation=activation, global_pool="token", norm_eps=1e-5
    )
    images = random_images((24, 24))
    expected = run_torch(lambda x: theirs(pixel_values=x), images)
    assert_agrees(run_flax(model, params, images), expected.image_embeds)


def test_leaves_the_text_tower_out_and_says_so():
    theirs, values, images = build("OpenAI")
    beside = (
        "logit_scale", "positional_embedding", "text_projection", "token_embedding.weight", "ln_final.weight",
        "ln_final.bias", "transformer.resblocks.0.ln_1.weight", "transformer.resblocks.0.attn.in_proj_weight",
        "transformer.resblocks.0.mlp.c_fc.bias", "text.transformer.encoder.layer.0.attention.self.query.weight",
        "input_resolution", "vocab_size", "context_length",
    )  # fmt: skip
    tensors = {**theirs.state_dict(), **{name: torch.zeros(2) for name in beside}}
    model, params = vit_flax.from_state_dict(tensors, **values, tower="image")
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))
    described = read_model(vit_flax.convert.from_mapping(tensors), Wish(overrides=values, tower="image")).to_dict()
    fates = {tensor["name"]: tensor["fate"] for tensor in described["tensors"]}
    assert all(fates[name].startswith("dropped: ") for name in beside)
    with pytest.raises(vit_flax.ConversionError, match=r"unexpected: visual\.other"):
        vit_flax.from_state_dict({**tensors, "visual.other": torch.zeros(2)}, **values, tower="image")


@pytest.mark.parametrize("case", ["CLIPA", "mean of normed tokens"])
def test_what_is_asked_for_suffices(case):
    theirs, right, images = build(case)
    given = {}
    with pytest.raises(vit_flax.ConversionError, match="do not tell"):
        vit_flax.from_state_dict(theirs.state_dict())
    for _ in range(3):  # each time the caller answers all that is asked for, and nothing else
        try:
            model, params = vit_flax.from_state_dict(theirs.state_dict(), **given)
            break
        except vit_flax.ConversionError as error:
            given |= {field: right[field] for field in right if f"`{field}=" in str(error)}
    else:
        pytest.fail(f"what was asked for does not suffice: {given}")
    assert "fc_norm" in given
    assert_agrees(run_flax(model, params, images), run_torch(theirs, images))


@pytest.mark.parametrize("field", ["num_heads", "activation", "global_pool", "norm_eps"])
def test_asks_for_what_the_tensors_do_not_tell(field):
    theirs, values, _ = build("OpenAI")
    values.pop(field)
    with pytest.raises(vit_flax.ConversionError, match=f"do not tell {field};.*quick_gelu"):
        vit_flax.from_state_dict(theirs.state_dict(), **values)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("visual.attn_pool.query", "attentional pooling"),
        ("visual.transformer.resblocks.0.attn.head_scale", "custom block"),
        ("visual.transformer.resblocks.0.attn.ln_q.weight", "custom block"),
    ],
)
def test_refuses_other_towers_by_name(name, message):
    theirs, values, _ = build("LAION")
    with pytest.raises(vit_flax.ConversionError, match=message):
        vit_flax.from_state_dict({**theirs.state_dict(), name: torch.zeros(4, 1)}, **values)


@pytest.mark.parametrize(
    ("field", "value"), [("patch_bias", True), ("head_bias", True), ("reg_tokens", 1), ("global_pool", "map")]
)
def test_refuses_to_hold_what_open_clip_cannot_compute(field, value):
    model = vit_flax.create_model("open_clip_vit_b_32", **{field: value, "depth": 1})
    with pytest.raises(vit_flax.ConversionError, match=field):
        vit_flax.to_state_dict(model, {}, layout="open_clip")


class TestTimmsTowers:
    @pytest.mark.parametrize(("num_classes", "bias"), [(12, False), (12, True), (0, False)])
    def test_agrees_and_goes_back(self, num_classes, bias):
        timm = import_timm()
        small = {"img_size": 32, "embed_dim": 32, "num_heads": 4, "depth": 2}
        name = "vit_base_patch16_siglip_224"
        trunk = timm.create_model(name, num_classes=0, **small)
        proj = torch.nn.Linear(32, num_classes, bias=bias) if num_classes else torch.nn.Identity()
        theirs = torch.nn.Module()
        theirs.visual = torch.nn.Module()
        theirs.visual.trunk, theirs.visual.head = trunk, torch.nn.Sequential()
        theirs.visual.head.add_module("proj", proj)
        theirs = randomise(theirs)
        config = get_preset(name).config
        values = {"image_size": 32, "num_heads": 4, "norm_eps": config.norm_eps, "activation": config.activation}
        model, params = vit_flax.from_state_dict(theirs.state_dict(), **values)
        images = random_images((32, 32))
        expected = run_torch(lambda x: theirs.visual.head(theirs.visual.trunk(x)), images)
        assert_agrees(run_flax(model, params, images), expected)
        assert_same_tensors(vit_flax.to_state_dict(model, params, layout="open_clip_timm"), theirs.state_dict())


@pytest.mark.parametrize("preset", OPEN_CLIP_MODELS)
def test_presets_have_the_towers_parameters(preset):
    config = get_preset(preset).config
    with torch.device("meta"):
        theirs = ImageCLIP(
            config.image_size, config.patch_size[0], config.embed_dim, config.depth, config.num_classes,
            head_width=config.head_dim, mlp_ratio=config.mlp_ratio, no_ln_pre=not config.pre_norm,
            ls_init_value=config.init_values,
        )  # fmt: skip
    shapes = expected_shapes(vit_flax.models.build_model(config))
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    assert vit_flax.convert.get_layout("open_clip").refusals(config) == []


MUTATIONS = {
    "swapped q and k": thirds_swapped("in_proj"),
    "swapped k and v": thirds_swapped("in_proj", 1, 2),
    "wrong epsilon": {"norm_eps": 1e-6},
    "exact for quick GELU": {"activation": "gelu"},
    "wrong heads": {"num_heads": 2},
    "class token after the patches": changed("positional_embedding", lambda a: np.roll(a, 1, axis=0)),
    "patches column by column": changed("conv1.weight", lambda a: a.swapaxes(2, 3)),
    "norms exchanged": exchanged("resblocks.0.ln_1", "resblocks.0.ln_2"),
    "norms before and after exchanged": exchanged("ln_pre", "ln_post"),
    "mean of the patches": {"global_pool": "avg", "fc_norm": False},
    "projection of the transposed kind": changed("visual.proj", lambda a: a.T.reshape(a.shape)),
}
SCALE_MUTATIONS = {
    "LayerScales exchanged": exchanged("ls_1", "ls_2"),
    "LayerScale dropped": changed("ls_1.gamma", np.ones_like),
}


@pytest.mark.parametrize("mutation", [*MUTATIONS, *SCALE_MUTATIONS])
def test_a_wrong_conversion_is_seen(mutation):
    theirs, values, images = build("LayerScale" if mutation in SCALE_MUTATIONS else "OpenAI")
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    change = {**MUTATIONS, **SCALE_MUTATIONS}[mutation]
    model, params = wrongly_converted(tensors, change, **values)
    assert_differs(run_flax(model, params, images), run_torch(theirs, images))
