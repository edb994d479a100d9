from typing import Any

import pytest

from vit_flax.config import ViTConfig
from vit_flax.convert import FAMILIES, LAYOUTS, ConversionError
from vit_flax.convert.config_files import ACTIVATIONS, read_config
from vit_flax.convert.timm_config_file import timm_config
from vit_flax.models.activations import get_activation
from vit_flax.presets import get_preset


def read(values) -> Any:
    return read_config(values, FAMILIES, "here")


def refused(values) -> str:
    with pytest.raises(ConversionError) as error:
        read(values)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("here: its config cannot be followed: ")
    assert message.endswith("pass `config=` with a preset's name to go without it")
    return message


def test_our_own():
    config = ViTConfig(depth=3, embed_dim=24, num_heads=2)
    found = read({**config.to_dict(), "layout": "timm"})
    assert ViTConfig(**found.fields) == config
    assert (found.origin, found.layout) == ("stored with the weights", "timm")
    assert "has no field 'dept'; did you mean 'depth'" in refused({**config.to_dict(), "dept": 3})
    assert "embed_dim 24 is not divisible by num_heads 5" in refused({**config.to_dict(), "num_heads": 5})
    assert "image_size must be" in refused({**config.to_dict(), "image_size": {}})
    assert "norm_eps must be a number or None, got 'small'" in refused({**config.to_dict(), "norm_eps": "small"})


def test_no_known_kind_is_not_guessed():
    assert read({"hidden_size": 768}) is None
    assert read({}) is None


HUGGING_FACE = {"model_type": "vit", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 80}


class TestHuggingFace:
    def test_attributes_become_fields_and_missing_ones_their_defaults(self):
        found = read({**HUGGING_FACE, "image_size": [32, 48], "hidden_act": "gelu_new", "qkv_bias": False})
        assert found.layout == "huggingface_vit"
        assert found.origin == "config.json (vit)"
        config = ViTConfig(**found.fields)
        assert (config.embed_dim, config.num_heads, config.mlp_dim, config.depth) == (32, 2, 80, 12)
        assert (config.image_size, config.norm_eps, config.activation) == ((32, 48), 1e-12, "gelu_tanh")
        assert config.qkv_bias is False

    def test_what_changes_nothing_is_let_pass(self):
        training = {"hidden_dropout_prob": 0.5, "initializer_range": 3, "architectures": ["Any"], "id2label": {}}
        neutral = {"pruned_heads": {}, "is_decoder": False, "chunk_size_feed_forward": 0, "pooler_act": "tanh"}
        assert read({**HUGGING_FACE, **training, **neutral}).fields == read(HUGGING_FACE).fields

    @pytest.mark.parametrize(
        ("attribute", "value", "said"),
        [
            ("pooler_act", "gelu", "pooler_act='gelu' (only 'tanh')"),
            ("pruned_heads", {"0": [1]}, "pruned_heads={'0': [1]} (only {} or None)"),
            ("quantization_config", {"bits": 4}, "quantization_config={'bits': 4} (only None)"),
            ("is_decoder", True, "is_decoder=True (only False)"),
            ("use_strange_norm", False, "use_strange_norm=False (unknown)"),
            ("hidden_act", "gelu_10", "activation 'gelu_10' is not known"),
            ("hidden_act", None, "activation None is not known"),
            ("hidden_size", "many", "it is broken"),
            ("hidden_size", 0, "it is broken"),
            ("intermediate_size", None, "it is broken"),
        ],
    )
    def test_what_is_not_honoured_is_refused_by_name(self, attribute, value, said):
        assert said in refused({**HUGGING_FACE, attribute: value})

    def test_all_that_is_refused_is_named_at_once(self):
        message = refused({**HUGGING_FACE, "odd": 1, "pooler_act": "relu"})
        assert "odd=1 (unknown), pooler_act='relu'" in message

    def test_unknown_types(self):
        assert "model_type 'llama' is not known; known: vit" in refused({"model_type": "llama"})
        refused({"model_type": ["vit"]})

    @pytest.mark.parametrize(
        ("kind", "said"),
        [("lw_detr_vit", "as images"), ("rf_detr_dinov2", "as images"), ("vitmatte", "convolutions"),
         ("hiera", "a Hiera"), ("edgetam_video", "a RepViT"), ("swinv2", "a Swin"),
         ("qwen2_5_vl_vision", "a language model's")],
    )  # fmt: skip
    def test_types_that_look_like_a_vit_are_refused_with_the_reason(self, kind, said):
        assert said in refused({"model_type": kind})
        assert said in refused({"model_type": "larger", "vision_config": {"model_type": kind}})

    def test_the_tables_point_to_what_there_is(self):
        assert {family.layout for family in FAMILIES.values()} <= set(LAYOUTS)
        for name in ACTIVATIONS.values():
            get_activation(name)


@pytest.mark.parametrize(
    "odd", [{"pool_type": "cls"}, {"norm_kwargs": {"bias": False}}, {"act_kwargs": {"inplace": 1}}]
)
def test_what_is_to_blame_of_an_open_clip_tower_is_named_alone(odd):
    tower = {"layers": 2, "width": 64, "pool_type": "tok", "norm_kwargs": {"eps": 1e-6}, "act_kwargs": None}
    (name, value), *_ = odd.items()
    said = refused({"model_cfg": {"vision_cfg": {**tower, **odd}}})
    assert f"cannot be followed: vision_cfg with {name}={value!r}; pass" in said


class TestTimm:
    def test_the_architecture_is_the_preset(self):
        found = read({"architecture": "vit_tiny_patch16_224", "num_classes": 10, "pretrained_cfg": {"tag": "none"}})
        assert found.layout == "timm"
        assert ViTConfig(**found.fields) == get_preset("vit_tiny_patch16_224").config.replace(num_classes=10)

    def test_the_order_of_what_wins(self):
        values = {
            "architecture": "vit_tiny_patch16_224",
            "num_classes": 7,
            "global_pool": "token",
            "model_args": {"img_size": 48, "depth": 2, "drop_path_rate": 0.1},
            "pretrained_cfg": {"input_size": [1, 96, 64], "fixed_input_size": True, "num_classes": 21843},
        }
        config = ViTConfig(**read(values).fields)
        assert (config.image_size, config.in_chans, config.depth, config.num_classes) == ((48, 48), 1, 2, 7)
        del values["model_args"], values["num_classes"]
        config = ViTConfig(**read(values).fields)
        assert (config.image_size, config.num_classes) == ((96, 64), 21843)

    def test_older_files_have_all_in_one(self):
        values = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "input_size": [3, 32, 32], "mean": [0]}
        config = ViTConfig(**read(values).fields)
        assert (config.image_size, config.num_classes) == ((32, 32), 5)

    @pytest.mark.parametrize(
        ("preset", "sizes"),
        [("vit_base_patch16_dinov3", {"reg_tokens": 3}), ("vit_base_patch16_rope_224", {"reg_tokens": 2, "depth": 3}),
         ("vit_small_patch14_dinov2", {"reg_tokens": 1}), ("beit_base_patch16_224", {"init_values": 0.5})],
    )  # fmt: skip
    def test_arguments_that_constructors_name_in_their_own_way_are_read_as_they_are_written(self, preset, sizes):
        config = get_preset(preset).config.replace(**sizes)
        written: Any = timm_config(config)
        assert ViTConfig(**read(written).fields, tokens=config.tokens, position=config.position) == config
        if preset.startswith("vit_base"):
            assert written["model_args"]["num_reg_tokens"] == sizes["reg_tokens"]

    def test_biases_that_go_with_other_arguments(self):
        for arguments, field in (({"pre_norm": True}, "patch_bias"), ({"proj_bias": False}, "mlp_bias")):
            values = {"architecture": "vit_tiny_patch16_224", "model_args": arguments}
            assert read(values).fields[field] is False
            config = ViTConfig(**read(values).fields)
            assert config == get_preset("vit_tiny_patch16_224").config.replace(**arguments, **{field: False})

    def test_another_pooling_leaves_the_place_of_the_norm_to_the_tensors(self):
        values = {"architecture": "vit_tiny_patch16_224", "model_args": {"global_pool": "avg"}}
        assert "fc_norm" not in read(values).fields
        assert read({**values, "model_args": {"global_pool": "avg", "fc_norm": False}}).fields["fc_norm"] is False

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"block_fn": "x", "act_layer": "prelu"}, "model_args block_fn='x', act_layer='prelu'"),
            ({"pos_embed": "rope"}, "model_args pos_embed='rope'"),
            ({"num_heads": 5}, "is not divisible by num_heads 5"),
            ({"depth": "two"}, "depth must be an integer"),
            ([1], "it is broken"),
        ],
    )
    def test_arguments_that_are_not_honoured_are_refused_by_name(self, arguments, said):
        assert said in refused({"architecture": "vit_tiny_patch16_224", "model_args": arguments})

    def test_unknown_architectures(self):
        assert "no preset named 'vit_tinny_patch16_224'; did you mean" in refused(
            {"architecture": "vit_tinny_patch16_224"}
        )
        assert "convolutional" in refused({"architecture": "vit_base_r50_s16_224"})
        refused({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": 3}})
