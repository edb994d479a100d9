import pytest

import vit_flax
from vit_flax.config import config_from_dict
from vit_flax.presets import PRESETS, REFUSED, get_preset


def test_every_config_survives_json() -> None:
    for preset in PRESETS.values():
        assert config_from_dict(preset.config.to_dict()) == preset.config


def test_an_architecture_stands_for_its_first_weights() -> None:
    assert get_preset("vit_base_patch16_224") is get_preset("vit_base_patch16_224.augreg2_in21k_ft_in1k")


def test_published_weights_have_their_own_head_and_preprocessing() -> None:
    augreg, dino = get_preset("vit_base_patch16_224.augreg_in21k"), get_preset("vit_base_patch16_224.dino")
    assert (augreg.config.num_classes, dino.config.num_classes) == (21843, 0)
    assert augreg.mean != dino.mean
    assert dino.source == "timm/vit_base_patch16_224.dino"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'vit_base_patch16_224'"):
        get_preset("vit_base_patch16_24")


@pytest.mark.parametrize("name", [*REFUSED, "vit_base_r50_s16_384.orig_in21k_ft_in1k"])
def test_a_refused_name_is_answered_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match="this library does not have"):
        get_preset(name)


def test_a_preset_can_be_changed() -> None:
    model = vit_flax.create_model("vit_base_patch14_reg4_dinov2.lvd142m", image_size=224, num_classes=3)
    assert (model.config.num_patches, model.config.num_prefix_tokens, model.config.num_classes) == (256, 5, 3)
