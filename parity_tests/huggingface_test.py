"""Hugging Face's vision models against transformers: loaded from files and from memory, compared, converted back."""

from __future__ import annotations

import copy
import json
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.agreement import assert_agrees, assert_components_agree, load_strictly, run_flax, wrongly_converted
from parity_tests.peers import import_transformers
from parity_tests.random_weights import random_images, randomise, relative_error
from vit_flax.convert import FAMILIES, get_layout, read_config
from vit_flax.convert.config_files import activation
from vit_flax.models.activations import get_activation
from vit_flax.models.rotation import rotary_frequencies
from vit_flax.parity.tolerances import SEEN
from vit_flax.parity.wrong_tensors import Wrong, changed, exchanged, thirds_swapped

transformers = import_transformers()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
SIZES = {**SHAPE, "intermediate_size": 48}

# name: (class, config, layout)
CASES = {
    "vit": ("ViTModel", SIZES, "vit"),
    "vit, another pooler": ("ViTModel", {**SIZES, "pooler_output_size": 24}, "vit"),
    "vit, classifier": ("ViTForImageClassification", {**SIZES, "num_labels": 3}, "vit"),
    "vit, not square": (
        "ViTForImageClassification",
        {**SIZES, "num_labels": 3, "image_size": [16, 24], "patch_size": [8, 4]},
        "vit",
    ),
    "vit, pixels left over": ("ViTModel", {**SIZES, "image_size": 21}, "vit"),
    "vit, no biases, another epsilon": ("ViTModel", {**SIZES, "qkv_bias": False, "layer_norm_eps": 1e-3}, "vit"),
    "vit, another activation": ("ViTModel", {**SIZES, "hidden_act": "quick_gelu"}, "vit"),
    "deit": ("DeiTModel", SIZES, "deit"),
    "deit, class token's head": ("DeiTForImageClassification", {**SIZES, "num_labels": 3}, "deit"),
    "deit, two heads": ("DeiTForImageClassificationWithTeacher", {**SIZES, "num_labels": 3}, "deit"),
    "mae": ("ViTMAEModel", SIZES, "mae"),
    "ijepa": ("IJepaModel", SIZES, "ijepa"),
    "ijepa, classifier": ("IJepaForImageClassification", {**SIZES, "num_labels": 3}, "ijepa"),
    "beit": ("BeitModel", {**SIZES, "use_relative_position_bias": True, "use_mask_token": True}, "beit"),
    "beit, classifier": (
        "BeitForImageClassification",
        {**SIZES, "num_labels": 3, "use_relative_position_bias": True, "hidden_act": "gelu_new"},
        "beit",
    ),
    "beit, one table, class token": (
        "BeitForImageClassification",
        {
            **SIZES,
            "num_labels": 3,
            "use_shared_relative_position_bias": True,
            "layer_scale_init_value": 0.0,
            "use_absolute_position_embeddings": True,
            "use_mean_pooling": False,
        },
        "beit",
    ),
    "dinov2": ("Dinov2Model", SHAPE, "dinov2"),
    "dinov2, gated": ("Dinov2Model", {**SHAPE, "use_swiglu_ffn": True, "use_mask_token": False}, "dinov2"),
    "dinov2, classifier": ("Dinov2ForImageClassification", {**SHAPE, "num_labels": 3, "mlp_ratio": 3}, "dinov2"),
    "registers, gated": ("Dinov2WithRegistersModel", {**SHAPE, "use_swiglu_ffn": True}, "dinov2"),
    "registers, classifier": ("Dinov2WithRegistersForImageClassification", {**SHAPE, "num_labels": 3}, "dinov2"),
    "dinov3": ("DINOv3ViTModel", {**SIZES, "num_register_tokens": 3, "image_size": [16, 32]}, "dinov3"),
    "dinov3, gated, key bias": (
        "DINOv3ViTModel",
        {**SIZES, "use_gated_mlp": True, "hidden_act": "silu", "key_bias": True, "rope_theta": 25.0},
        "dinov3",
    ),
    "dinov3, published heads": ("DINOv3ViTModel", {**SIZES, "hidden_size": 128, "num_attention_heads": 2}, "dinov3"),
    "clip": ("CLIPVisionModel", SIZES, "clip"),
    "clip, projection": ("CLIPVisionModelWithProjection", {**SIZES, "projection_dim": 5}, "clip"),
    "clip, gelu, pixels left over": ("CLIPVisionModel", {**SIZES, "hidden_act": "gelu", "image_size": 21}, "clip"),
    "clip, classifier": ("CLIPForImageClassification", {"vision_config": SIZES, "num_labels": 3}, "clip"),
    "siglip": ("SiglipVisionModel", SIZES, "siglip"),
    "siglip, no head": ("SiglipVisionModel", {**SIZES, "vision_use_head": False}, "siglip"),
    "siglip, classifier": (
        "SiglipForImageClassification",
        {"vision_config": {**SIZES, "vision_use_head": False}, "num_labels": 3},
        "siglip",
    ),
}


def build(case: str, **changes):
    """Returns the transformers model of a case in float64, with random weights, and images."""
    kind, arguments, _ = CASES[case]
    config_class = getattr(transformers, kind).config_class
    if "vision_config" in arguments:
        arguments = {**arguments, "vision_config": {**arguments["vision_config"], **changes}}
    else:
        arguments = {**arguments, **changes}
    model = getattr(transformers, kind)(config_class(**arguments))
    randomise(model)
    size = getattr(model.config, "vision_config", model.config).image_size
    return model, random_images((size, size) if isinstance(size, int) else tuple(size))


def all_patches(model, pixels):
    """Returns the arguments with which a ViT-MAE encodes all patches in order; none for other models."""
    if not isinstance(model, transformers.ViTMAEModel):
        return {}
    model.config.mask_ratio = model.embeddings.config.mask_ratio = 0.0
    patches = model.embeddings.patch_embeddings.num_patches
    return {"noise": torch.arange(patches, dtype=pixels.dtype).expand(len(pixels), -1)}


def outputs(model, images):
    """Returns transformers' hidden states after the last norm, if it gives them, and the pooled output or logits."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        out = model(pixels, **all_patches(model, pixels))
    hidden = out.get("last_hidden_state")
    for name in ("logits", "image_embeds", "pooler_output"):
        if out.get(name) is not None:
            return hidden, out[name]
    return hidden, None


def assert_same(model, params, theirs, images):
    hidden, pooled = outputs(theirs, images)
    if hidden is not None:
        assert_agrees(run_flax(model, params, images, "features"), hidden)
    if pooled is not None:
        assert_agrees(run_flax(model, params, images), pooled)
    assert hidden is not None or pooled is not None


def layout_of(case: str, suffix: str = "") -> str:
    return f"huggingface_{CASES[case][2]}{suffix}"


@pytest.mark.parametrize("case", CASES)
def test_files_are_read_and_written_back(case, tmp_path):
    theirs, images = build(case)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = vit_flax.load(tmp_path / "theirs")
    assert_same(model, params, theirs, images)

    vit_flax.save(tmp_path / "ours", model, params, layout=layout_of(case))
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert next(again.parameters()).dtype == torch.float64
    assert_same(model, params, again.double().eval(), images)  # what it computes for itself in float64 as well
    for name, tensor in again.state_dict().items():
        if case == "clip, classifier" and "post_layernorm" in name:
            continue  # its classifier does not read it
        assert torch.equal(tensor, theirs.state_dict()[name]), name

    # config.json alone says the same as the config of ours that stands in the file
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    from_config, _ = vit_flax.from_state_dict(again.state_dict(), config=config)
    assert from_config.config == model.config
    reread, _ = vit_flax.load(tmp_path / "ours")
    assert reread.config == model.config


@pytest.mark.parametrize("case", CASES)
def test_names_in_memory_are_read_and_written_back(case):
    theirs, images = build(case)
    tensors = theirs.state_dict()
    model, params = vit_flax.from_state_dict(tensors, config=theirs.config.to_dict())
    assert_same(model, params, theirs, images)
    load_strictly(theirs, vit_flax.to_state_dict(model, params, layout=layout_of(case, "_memory")))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, tensors[name]) or (case == "clip, classifier" and "post_layernorm" in name)


def returning_the_output(module):
    """Returns the module with a forward that gives one array, as the parity tool needs it."""
    kind = type(module)

    def forward(self, pixels):
        out = kind.forward(self, pixels, **all_patches(self, pixels))
        if kind is transformers.ViTMAEModel:
            return out["last_hidden_state"][:, 0]
        return next(out[name] for name in ("logits", "image_embeds", "pooler_output") if out.get(name) is not None)

    module = copy.copy(module)
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module


COMPONENTS = [
    "vit", "vit, classifier", "deit, two heads", "mae", "ijepa, classifier", "beit, classifier",
    "dinov2, gated", "registers, classifier",
    "dinov3", "dinov3, gated, key bias", "clip, projection", "clip, classifier", "siglip", "siglip, classifier",
]  # fmt: skip


# families with another row in the list
REPEATING = (
    "vit", "clip, classifier", "siglip", "registers, classifier", "deit, two heads", "dinov3", "mae",
    "ijepa, classifier", "dinov2, gated", "siglip, classifier",
)  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in REPEATING else c for c in COMPONENTS])
def test_every_component_and_gradient_agrees(case):
    theirs, images = build(case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict())
    module = returning_the_output(theirs)
    rows = assert_components_agree(module, model, params, layout_of(case, "_memory"), images)
    assert {row.name for row in rows} == {"image", *(name for name, _ in theirs.named_parameters())}


ROLLED = changed("position_embedding", lambda a: np.roll(a, 1, axis=-2))
VIT_MUTATIONS = {
    "swapped q and k": exchanged("q_proj", "k_proj"),
    "swapped k and v": exchanged("k_proj", "v_proj"),
    "wrong epsilon": {"norm_eps": 1e-6},
    "tanh for erf": {"activation": "gelu_tanh"},
    "wrong heads": {"num_heads": 2},
    "class token after the patches": ROLLED,
    "patches column by column": changed("projection.weight", lambda a: a.swapaxes(2, 3)),
    "channels reversed": changed("projection.weight", lambda a: a[:, ::-1]),
    "norms exchanged": exchanged("layernorm_before", "layernorm_after"),
    "transposed projection": changed("o_proj.weight", np.transpose),
    "value skip": {"value_skip": True},
    "mean of the patches": {"global_pool": "avg"},
}
# seen in the tokens alone: what attends to registers does not know their order
REGISTERS_REVERSED = changed("register_tokens", lambda a: a[:, ::-1])


def first_register_first(tensors):
    """Exchanges the class token and the first register."""
    tensors = dict(tensors)
    token, registers = ("dinov2_with_registers.embeddings." + name for name in ("cls_token", "register_tokens"))
    both = np.concatenate([tensors[token], tensors[registers][:, :1]], axis=1)
    tensors[token] = both[:, 1:]
    tensors[registers] = np.concatenate([both[:, :1], tensors[registers][:, 1:]], axis=1)
    return tensors


FAMILY_MUTATIONS: dict[str, dict[str, Wrong]] = {
    "deit, two heads": {
        "swapped q and k": exchanged("q_proj", "k_proj"),
        "wrong epsilon": {"norm_eps": 1e-6},
        "tanh for erf": {"activation": "gelu_tanh"},
        "tokens exchanged": exchanged("cls_token", "distillation_token"),
        "heads exchanged": exchanged("cls_classifier", "distillation_classifier"),
        "class token after the patches": ROLLED,
    },
    "dinov2, gated": {
        "gate and value exchanged": exchanged("gate_proj", "up_proj"),
        "LayerScale dropped": changed("lambda1", np.ones_like),
        "wrong epsilon": {"norm_eps": 1e-5},
        "gelu for silu": {"activation": "gelu"},
    },
    "registers, classifier": {
        "swapped q and k": exchanged("q_proj", "k_proj"),
        "tanh for erf": {"activation": "gelu_tanh"},
        "LayerScale dropped": changed("lambda1", np.ones_like),
        "LayerScales exchanged": exchanged("layer_scale1", "layer_scale2"),
        "wrong epsilon": {"norm_eps": 1e-12},
        "a register first": first_register_first,
        "mean of registers too": {"pool_include_prefix": True},
        "class token after the patches": ROLLED,
    },
    "dinov3": {
        "swapped q and k": exchanged("q_proj.weight", "k_proj.weight"),
        "tanh for erf": {"activation": "gelu_tanh"},
        "LayerScale dropped": changed("lambda1", np.ones_like),
        "wrong epsilon": {"norm_eps": 1e-6},
        "another period": {"rope_theta": 10000.0},
        "registers in another order": REGISTERS_REVERSED,
        "rows and columns exchanged": {"rope_grid_indexing": "xy"},
        "neighbouring channels turned": {"rope_rotate_half": False},
        "counted patches": {"rope_type": "cat"},
    },
    "registers, gated": {"registers in another order": REGISTERS_REVERSED},
    "clip, projection": {
        "swapped q and k": exchanged("q_proj", "k_proj"),
        "erf for sigmoid": {"activation": "gelu"},
        "tanh for sigmoid": {"activation": "gelu_tanh"},
        "wrong epsilon": {"norm_eps": 1e-6},
        "class token after the patches": ROLLED,
        "norms exchanged": exchanged("pre_layrnorm", "post_layernorm"),
    },
    "clip, classifier": {
        "swapped q and k": exchanged("q_proj", "k_proj"),
        "wrong epsilon": {"norm_eps": 1e-6},
        "class token": {"global_pool": "token"},
        "mean of the class token too": {"pool_include_prefix": True},
    },
    "siglip": {
        "swapped q and k": exchanged("q_proj", "k_proj"),
        "erf for tanh": {"activation": "gelu"},
        "wrong epsilon": {"norm_eps": 1e-5},
        "q and k of the head swapped": thirds_swapped("head.attention.in_proj"),
        "mean for attention": {"global_pool": "avg"},
        "positions moved": ROLLED,
    },
    "mae": {
        "swapped q and k": exchanged("q_proj", "k_proj"),
        "wrong epsilon": {"norm_eps": 1e-6},
        "class token after the patches": ROLLED,
    },
    "ijepa, classifier": {
        "swapped q and k": exchanged("q_proj", "k_proj"),
        "wrong epsilon": {"norm_eps": 1e-6},
        "tanh for erf": {"activation": "gelu_tanh"},
        "positions moved": ROLLED,
    },
    "beit": {
        "swapped q and k": exchanged("q_proj.weight", "k_proj.weight"),
        "LayerScale dropped": changed("lambda_", np.ones_like),
        "wrong epsilon": {"norm_eps": 1e-6},
        "tanh for erf": {"activation": "gelu_tanh"},
        "steps the other way": changed("bias_table", lambda a: np.concatenate([a[-4::-1], a[-3:]])),
        "class token's row first": changed("bias_table", lambda a: np.roll(a, 1, axis=0)),
        "class token for mean": {"global_pool": "token"},
    },
    "vit, classifier": VIT_MUTATIONS,
}
MUTATIONS: dict[tuple[str, str], Wrong] = {
    (case, name): mutation for case, mutations in FAMILY_MUTATIONS.items() for name, mutation in mutations.items()
}


@cache
def rightly_converted(case):
    """Returns tensors, config, images and outputs by method of a case with which a right conversion agrees."""
    theirs, images = build(case)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    config = theirs.config.to_dict()
    hidden, pooled = outputs(theirs, images)
    methods = {"features": hidden, "__call__": pooled}
    methods = {method: expected for method, expected in methods.items() if expected is not None}
    model, params = vit_flax.from_state_dict(tensors, config=config)
    for method, expected in methods.items():
        assert_agrees(run_flax(model, params, images, method), expected)
    return tensors, config, images, methods


@pytest.mark.parametrize(("case", "mutation"), MUTATIONS)
def test_a_wrong_conversion_is_seen(case, mutation):
    tensors, config, images, methods = rightly_converted(case)
    model, params = wrongly_converted(tensors, MUTATIONS[case, mutation], config=copy.deepcopy(config))
    errors = [relative_error(run_flax(model, params, images, m), expected) for m, expected in methods.items()]
    assert max(errors) > SEEN


@pytest.mark.parametrize("head_dim", [64, 128])  # of all published models
@pytest.mark.parametrize("theta", [100.0, 10000.0])
def test_rotary_frequencies_have_the_bits_of_the_buffer(head_dim, theta):
    sizes = {**SIZES, "hidden_size": head_dim, "num_attention_heads": 1, "rope_theta": theta}
    theirs = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes)).rope_embeddings.inv_freq
    assert np.array_equal(rotary_frequencies(head_dim, theta), theirs.numpy())


TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_reads_an_image_tower_beside_its_text_tower(name, tmp_path):
    kind, config_class = {
        "clip": (transformers.CLIPModel, transformers.CLIPConfig),
        "siglip": (transformers.SiglipModel, transformers.SiglipConfig),
    }[name]
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    theirs = randomise(kind(config_class(vision_config=SIZES, text_config={**TEXT, **tokens}, projection_dim=5)))
    theirs.save_pretrained(tmp_path)
    model, params = vit_flax.load(tmp_path, tower="image")
    images = random_images((16, 16))
    expected = outputs(theirs.vision_model, images)[1]
    if name == "clip":
        with torch.no_grad():
            expected = theirs.visual_projection(expected)
    assert_agrees(run_flax(model, params, images), expected)


def test_reads_the_encoder_of_a_pre_trained_mae(tmp_path):
    decoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    decoder = {f"decoder_{name}": value for name, value in decoder.items()}
    theirs = randomise(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES, **decoder)))
    theirs.save_pretrained(tmp_path)
    images = random_images((16, 16))
    expected, _ = outputs(theirs.vit, images)
    for tensors in (None, theirs.state_dict()):
        model, params = (
            vit_flax.load(tmp_path)
            if tensors is None
            else vit_flax.from_state_dict(tensors, num_heads=4, image_size=16, norm_eps=1e-12, activation="gelu")
        )
        assert model.config.pos_embed == "sincos_2d"
        assert_agrees(run_flax(model, params, images, "features"), expected)


@pytest.mark.parametrize(("name", "config"), [("ViT", "ViTConfig"), ("DeiT", "DeiTConfig"), ("IJepa", "IJepaConfig")])
def test_a_mask_token_is_kept_unless_the_config_leaves_it_out(name, config, tmp_path):
    theirs = getattr(transformers, f"{name}Model")(getattr(transformers, config)(**SIZES), use_mask_token=True)
    randomise(theirs).save_pretrained(tmp_path / "theirs")
    model, params = vit_flax.load(tmp_path / "theirs")
    images = random_images((16, 16))
    assert_same(model, params, theirs, images)
    vit_flax.save(tmp_path / "ours", model, params, layout=f"huggingface_{name.lower()}")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", use_mask_token=True, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(again.embeddings.mask_token, theirs.embeddings.mask_token)
    _, without = vit_flax.load(tmp_path / "theirs", mask_token=False)
    assert params.keys() - without.keys() == {"mask_token"}


@pytest.mark.parametrize(("name", "config"), [("ViT", "ViTConfig"), ("DeiT", "DeiTConfig")])
def test_leaves_out_what_rebuilds_masked_patches(name, config, tmp_path):
    theirs = getattr(transformers, f"{name}ForMaskedImageModeling")(getattr(transformers, config)(**SIZES))
    randomise(theirs).save_pretrained(tmp_path)
    images = random_images((16, 16))
    model, params = vit_flax.load(tmp_path)
    inner = getattr(theirs, name.lower())
    assert_agrees(run_flax(model, params, images, "features"), outputs(inner, images)[0])


def test_leaves_out_the_pooling_that_a_siglip_classifier_does_not_look_at(tmp_path):
    config = transformers.SiglipConfig(vision_config=SIZES, num_labels=3)
    theirs = randomise(transformers.SiglipForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    model, params = vit_flax.load(tmp_path)
    images = random_images((16, 16))
    assert_agrees(run_flax(model, params, images), outputs(theirs, images)[1])


def test_a_config_file_may_leave_out_what_is_at_its_default():
    config = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}
    beside = read_config(config, FAMILIES, "a test")
    assert beside is not None
    fields = beside.fields
    assert (fields["embed_dim"], fields["depth"], fields["norm_eps"]) == (768, 12, 1e-6)
    assert (fields["patch_size"], fields["activation"]) == ((16, 16), "gelu_tanh")


@pytest.mark.parametrize(
    ("case", "layout", "override", "reason"),
    [
        ("vit", "vit", {"value_skip": True}, "value_skip"),
        ("vit", "vit", {"activation": "selu"}, "activation"),
        ("vit", "vit", {"global_pool": "avg"}, "global_pool"),
        ("vit", "vit", {"norm_eps": None}, "norm_eps"),
        ("vit", "deit", {}, "dist_token"),
        ("vit", "clip", {}, "pre_norm"),
        ("dinov2", "vit", {}, "init_values"),
        ("dinov2", "dinov2", {"mlp_ratio": 3.5}, "mlp_ratio"),
        ("dinov2", "dinov2", {"image_size": (16, 24)}, "image_size"),
        ("siglip", "siglip", {"num_classes": 3}, "global_pool"),
        ("deit", "deit", {"head_dist": True}, "head_dist"),
    ],
)
def test_refuses_to_hold_what_transformers_cannot_compute(case, layout, override, reason):
    theirs, _ = build(case)
    config = vit_flax.from_state_dict(theirs.state_dict(), config=theirs.config.to_dict())[0].config
    refusals = get_layout(f"huggingface_{layout}").refusals(config.replace(**override))
    assert any(reason in line for line in refusals), refusals


@pytest.mark.parametrize(
    "name",
    [
        "gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate",
        "quick_gelu", "silu", "swish", "relu", "relu6", "sigmoid", "tanh", "mish", "hardswish", "leaky_relu", "linear",
    ],
)  # fmt: skip
def test_activations_are_the_same(name):
    inputs = np.random.default_rng(0).standard_normal(1000) * 4
    theirs = transformers.activations.ACT2FN[name](torch.from_numpy(inputs))
    assert_agrees(get_activation(activation(name))(jnp.asarray(inputs)), theirs)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("hidden_act", "relu2"), ("pooler_act", "relu"), ("position_buckets", 7)],
)
def test_attributes_that_are_not_honoured_are_refused_by_name(attribute, value):
    theirs, _ = build("vit")
    with pytest.raises(vit_flax.ConversionError, match=f"{attribute}=|activation '{value}'"):
        vit_flax.from_state_dict(theirs.state_dict(), config={**theirs.config.to_dict(), attribute: value})


def test_another_family_of_the_same_names_is_refused():
    theirs, _ = build("vit")
    with pytest.raises(vit_flax.ConversionError, match="vit_msn"):
        vit_flax.from_state_dict(theirs.state_dict(), config={**theirs.config.to_dict(), "model_type": "vit_msn"})


def test_asks_for_what_tensors_do_not_tell():
    with pytest.raises(vit_flax.ConversionError, match=r"num_heads.*image_size.*norm_eps.*activation"):
        vit_flax.from_state_dict(build("vit")[0].state_dict())
