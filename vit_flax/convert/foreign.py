"""Checkpoints of other models, recognised by tensor names, so that a refusal names the model."""

from __future__ import annotations

import re
from collections.abc import Collection

_HIERA = "a Hiera, whose tokens lie window by window (of SAM 2 the same blocks are read)"
# (every one of these patterns is somewhere in the names, or nowhere after a '!'; what that is). The first that fits is
# told.
_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((r"\.lora_(A|B)\b", r"^(?!.*lora_).*(norm|ln)[\w.]*\.weight$"),
     "a model beside adapters (LoRA) that are not merged: merge them (peft: model.merge_and_unload()), save it again"),
    ((r"\.lora_(A|B|up|down)\b|\.lora_embedding_",), "an adapter (LoRA): give the folder with its adapter_config.json"),
    ((r"(^|/)(exp_avg|momentum_buffer|exp_avg_sq|max_exp_avg_sq)$",), "an optimiser's state without the model"),
    ((r"(^|[./])decode_head\.conv_depth\.",),
     "a linear depth head of DINOv2, which vit-flax depth reads beside its backbone: --head FILE"),
    ((r"(^|[./])decode_head\.conv_seg\.", r"(^|[./])decode_head\.bn\."),
     "a linear segmentation head of DINOv2, without its backbone"),
    ((r"patch_embed\.backbone\.",), "a hybrid model, whose tokens come from a convolutional network"),
    ((r"blocks_token_only\.",), "a CaiT"),
    ((r"cls_attn_blocks\.|\.local_mp\.|\.attn\.temperature$",), "an XCiT"),
    ((r"\.temporal_(attn|attention)\.",), "a TimeSformer, which reads video"),
    ((r"\.pool_q\.|\.attn\.pool_k\.",), "an MViT"),
    ((r"encoder\.layer\.\d+\.residual\.conv1\.",), "a ViTDet with convolutions after some of its blocks"),
    ((r"detection_tokens$",), "a YOLOS, which detects objects"),
    ((r"window_attention\.attn_layer\.",), "a MaxViT"),
    ((r"(^|[./])blocks\.\d+\.attn\.qkv\.", r"(^|[./])blocks\.\d+\.proj\.weight$", r"!pos_embed_window$"), _HIERA),
    ((r"encoder\.stages\.\d+\.layers\.\d+\.attn\.qkv\.",), _HIERA),
    ((r"adaLN_modulation|adaln_single|norm1\.linear\.", r"blocks\.\d+\."), "a diffusion transformer (DiT)"),
    ((r"\.cpb_mlp\.|continuous_position_bias_mlp",), "a Swin Transformer V2"),
    ((r"(layers|stages|features)\.\d+\.(blocks\.)?\d+\.(attn|attention)\.(self\.|relative_position_bias\.)?relative_position_bias_table",),
     "a Swin Transformer"),
    ((r"attn_(block|grid)\..*(relative_position|rel_pos)|\.attn_block\.attn\.",), "a MaxViT"),
    ((r"\.attention_bias(es|_cache)?$|attention_biases",), "a LeViT or one of its relatives"),
    ((r"transformers\.\d+\.blocks\.\d+\.attn\.qkv",), "a PiT"),
    ((r"blocks\.\d+\.attn_in\.",), "a TNT"),
    ((r"blocks\.\d+\.blocks\.\d+\.\d+\.attn\.",), "a CrossViT"),
    ((r"\.attn\.sr\.|(^|[./])block1\.\d+\.attn\.|patch_embeddings\.\d+\.proj\.", r"attn|attention"),
     "a pyramid of transformers (PVT, SegFormer, Twins)"),
    ((r"\.attn\.pos_proj\.", r"\.attn\.gating_param$"), "a ConViT"),
    ((r"(^|[./])cls_token4$", r"(^|[./])cpe4\."), "a CoaT"),
    ((r"stages\.\d+\.blocks\.\d+\.\d+\.cpe1\.",), "a DaViT"),
    ((r"\.modulation\.f\.", r"\.modulation\.h\."), "a FocalNet"),
    ((r"\.mlp_channels\.gate\.|\.mlp_tokens\.|\.token_mixing\.|\.linear_tokens\.",),
     "an MLP-Mixer or one of its relatives"),
    ((r"(^|[./])layers\.\d+\.mlp\.w12\.", r"patch_embed\.projection\."),
     "mmpretrain's ViTEVA02, whose names are not read: take timm's weights of the same model"),
    ((r"bbox_embed|query_embed|query_position_embeddings|bbox_head|class_labels_classifier",),
     "a detector whose backbone is none of the known ViTs"),
    ((r"mlp\.dwconv\.dwconv\.",), "a pyramid of transformers (PVT, SegFormer, Twins)"),
    ((r"down_blocks\.\d+\.|input_blocks\.\d+\.", r"up_blocks\.|output_blocks\.|mid_block\.|middle_block\."),
     "a UNet or an autoencoder of a diffusion model"),
    ((r"feature_extractor\.conv_layers\.",), "a speech model (wav2vec 2.0 or one of its relatives)"),
    ((r"encoder\.conv1\.", r"encoder\.layers\.\d+\.self_attn\."), "a speech model (Whisper)"),
    ((r"word_embeddings\.weight$",), "a language model (BERT or one of its relatives)"),
    ((r"(^|[./])(wte|wpe)\.weight$|\.attn\.c_attn\.",), "a language model (GPT)"),
    ((r"embed_tokens\.weight$|(^|[./])gpt_neox\.|tok_embeddings\.weight$",), "a language model"),
    ((r"block\.\d+\.layer\.\d+\.SelfAttention\.",), "a language model (T5)"),
    ((r"token_embedding\.weight$",), "the text tower of a CLIP, without its image tower"),
    ((r"(dwconv|depthwise_conv|conv_dw)\.(weight|bias)$", r"(stages|downsample_layers)\.\d+\."),
     "a ConvNeXt or another convolutional network"),
    ((r"features\.\d+\.\d+\.block\.\d+\.",), "a convolutional network (torchvision's ConvNeXt or EfficientNet)"),
    ((r"conv_stem\.weight|\.conv_dw\.weight|\.depthwise\.|features\.\d+\.\d+\.\d+\.weight$",),
     "a convolutional network (EfficientNet, MobileNet or one of their relatives)"),
    ((r"(^|[./])layer1\.0\.conv1\.weight|stages\.0\.layers\.0\.layer\.0\.convolution|layer1\.0\.conv1\.kernel",),
     "a ResNet"),
    ((r"denseblock1\.",), "a DenseNet"),
    ((r"(^|[./])features\.0\.weight$",), "a convolutional network (VGG, AlexNet)"),
    ((r"(^|[./])model\.0\.conv\.weight$",), "a YOLO"),
    ((r"\.token_mixer\.conv\.c\.weight$",), "a RepViT, a convolutional network, as EdgeTAM's image encoder is"),
    ((r"pos_embed_window$",), "the image encoder of SAM 2 under names that are not known"),
    ((r"running_mean$",), "a network with batch normalisation, convolutional at least in part"),
)  # fmt: skip
# Those whose tensors a layout would take for a model of its own, to fail at hundreds of them.
_TAKEN = ("a model beside adapters", "a hybrid", "a CaiT", "an XCiT", "a TimeSformer", "a ViTDet", "an MViT",
          "a Hiera", "a diffusion transformer", "a YOLOS", "a MaxViT")  # fmt: skip


# text towers that are not read, by patterns of their tensors' names beside an image tower's
_TEXTS: tuple[tuple[str, str], ...] = (
    (r"^text.*(\.word_embeddings\.weight|\.attention\.self\.query\.weight)$", "a BERT or one of its relatives"),
    (r"^text.*\.SelfAttention\.", "a T5"),
    (r"(^|\.)cls_emb$|^text_decoder\.", "CoCa's, with a token of its own and a decoder"),
)


def foreign_text(names: Collection[str]) -> str | None:
    """Returns what kind of text tower, none of those that are read, tensors of these names belong to."""
    for pattern, kind in _TEXTS:
        if found := next((name for name in names if re.search(pattern, name)), None):
            return f"its text tower is {kind} ({found})"
    return None


def foreign_kind(names: Collection[str], taken: bool = False) -> str | None:
    """Returns the foreign model that tensors of these names belong to, or None where that is not known.

    Args:
        names: of the tensors.
        taken: only models that a layout here would be mistaken about.
    """
    for patterns, kind in _KINDS:
        if taken and not kind.startswith(_TAKEN):
            continue
        absent = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
        if any(re.search(pattern, name) for pattern in absent for name in names):
            continue
        present = [pattern for pattern in patterns if not pattern.startswith("!")]
        hits = [next((name for name in names if re.search(pattern, name)), None) for pattern in present]
        if all(hits):
            return f"it has {hits[0]}: {kind}"
    return None
