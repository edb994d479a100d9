"""Messages name the architecture of models of other kinds, by the tensor names of timm's and transformers' models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity_tests.peers import import_timm, import_transformers
from vit_flax.convert import ConversionError, detect_layout, from_mapping, unwrap

timm, transformers = import_timm(), import_transformers()

TIMM = {
    "swin_tiny_patch4_window7_224": "a Swin Transformer", "convnext_atto": "ConvNeXt", "resnet18": "a ResNet",
    "cait_xxs24_224": "a CaiT", "xcit_nano_12_p16_224": "an XCiT", "hiera_tiny_224": "a Hiera",
    "repvit_m1": "as EdgeTAM's image encoder is", "mvitv2_tiny": "an MViT", "mixer_s32_224": "an MLP-Mixer",
    "mobilenetv3_small_050": "a convolutional network", "vit_tiny_r_s16_p8_224": "a hybrid model",
    "convit_tiny": "a ConViT", "coat_tiny": "a CoaT", "davit_tiny": "a DaViT", "focalnet_tiny_srf": "a FocalNet",
    "gmlp_ti16_224": "an MLP-Mixer or one of its relatives",
}  # fmt: skip
TRANSFORMERS = {
    "BertModel": "a language model (BERT", "GPT2Model": "a language model (GPT)", "T5Model": "a language model",
    "SwinModel": "a Swin Transformer", "ResNetModel": "a ResNet", "SegformerModel": "a pyramid of transformers",
    "WhisperModel": "a speech model", "DetrModel": "a detector", "CLIPTextModel": "the text tower of a CLIP",
    "HieraModel": "a Hiera", "YolosModel": "a YOLOS", "TimesformerModel": "a TimeSformer",
}  # fmt: skip


def said(names) -> str:
    with pytest.raises(ConversionError) as error:
        detect_layout(list(names))
    message = str(error.value)
    assert len(message) < 250
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("name", "kind"), TIMM.items())
def test_timms(name: str, kind: str) -> None:
    with torch.device("meta"):
        names = timm.create_model(name).state_dict()
    assert kind in said(names)
    wrapped = {"state_dict": {f"module.{name}": np.zeros(1) for name in names}}
    assert kind in said(unwrap(from_mapping(wrapped)).shapes)


@pytest.mark.parametrize(("name", "kind"), TRANSFORMERS.items())
def test_transformers(name: str, kind: str) -> None:
    with torch.device("meta"):
        module = getattr(transformers, name)
        names = module(module.config_class()).state_dict()
    assert kind in said(names)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["base_model.model.vit.x.lora_A.weight", "base_model.model.vit.x.lora_B.weight"], "an adapter (LoRA)"),
        (["lora_unet_down_blocks_0.lora_up.weight"], "an adapter (LoRA)"),
        (["layers.0.layernorm_before.weight", "layers.0.attention.q_proj.base_layer.weight",
          "layers.0.attention.q_proj.lora_A.default.weight"], "beside adapters (LoRA) that are not merged"),
        (["patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.lora_B"],
         "beside adapters (LoRA) that are not merged"),
        (["state/0/exp_avg", "state/0/exp_avg_sq"], "an optimiser's state"),
        (["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.middle_block.0.x"], "a UNet"),
        (["down_blocks.0.x.weight", "mid_block.x"], "a UNet"),
        (["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"], "a language model"),
        (["features.0.weight", "classifier.6.bias"], "VGG"),
        (["model.0.conv.weight"], "a YOLO"),
        (["x.y"], "match no known layout (`vit-flax list layouts` has them); some: x.y"),
    ],
)  # fmt: skip
def test_others(names: list[str], kind: str) -> None:
    assert kind in said(names)
