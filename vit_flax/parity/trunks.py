"""Compares small trunks with window attention, of random weights, with the transformers classes they come from."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from vit_flax.convert import get_layout
from vit_flax.parity.compare import require_x64
from vit_flax.parity.inputs import draw_images
from vit_flax.parity.other_models import compare_peer
from vit_flax.parity.peers import import_peer
from vit_flax.parity.report import Report
from vit_flax.parity.small_mutation import SmallMutation, draw_parameters
from vit_flax.parity.transformers_models import peer_of
from vit_flax.pretrained import from_state_dict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# grids of 5x5 patches, which windows of 3 do not divide; the first block has window, the second global attention
_SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4, "image_size": 20,
    "window_size": 3,
}  # fmt: skip
_SAM = {**_SIZES, "mlp_dim": 40, "global_attn_indexes": [1], "output_channels": 6}
# stages of 8x4 and 4x2 patches; queries are pooled in the second block, the last sees all
_STAGES = {
    "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [32, 16], "blocks_per_stage": [1, 3],
    "embed_dim_per_stage": [8, 16], "num_attention_heads_per_stage": [1, 2], "window_size_per_stage": [4, 3],
    "global_attention_blocks": [3], "window_positional_embedding_background_size": [3, 3], "num_query_pool_stages": 1,
}  # fmt: skip
_SAM2 = {
    "backbone_config": _STAGES, "backbone_channel_list": [16, 8], "fpn_hidden_size": 8, "fpn_top_down_levels": [0, 1],
    "num_feature_levels": 1,
}  # fmt: skip
# transformers' class, its attributes, and the layout
KINDS: dict[str, tuple[str, dict[str, object], str]] = {
    "sam": ("SamVisionModel", _SAM, "huggingface_sam"),
    "sam_hq": ("SamHQVisionModel", _SAM, "huggingface_sam"),
    "vitdet": (
        "VitDetModel",
        {**_SIZES, "mlp_ratio": 2, "window_block_indices": [0], "pretrain_image_size": 12,
         "use_relative_position_embeddings": True},
        "huggingface_vitdet",
    ),
    "sam3": (
        "Sam3ViTModel",
        {**_SIZES, "intermediate_size": 40, "global_attn_indexes": [1], "pretrain_image_size": 12},
        "huggingface_sam3",
    ),
    "sam2": ("Sam2VisionModel", _SAM2, "huggingface_sam2"),
}  # fmt: skip


def small_trunk(case: str, seed: int = 0) -> PreTrainedModel:
    """Builds a small transformers model of random weights, in float64; `case` is a key of `KINDS`."""
    transformers = import_peer("transformers")
    name, attributes, _ = KINDS[case]
    kind = getattr(transformers, name)
    module: PreTrainedModel = kind(kind.config_class(**attributes)).double().eval()
    draw_parameters(module, seed)
    return module


def compare_small_trunk(case: str, mutation: SmallMutation | None = None, seed: int = 0) -> Report:
    """Compares a small transformers model of random weights with its Flax conversion, under a mutation if given.

    Raises:
        ImportError: transformers is not installed.
    """
    require_x64()
    module = small_trunk(case, seed)
    tensors: Any = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    told: dict[str, Any] = {"config": module.config.to_dict()}
    layout = get_layout(KINDS[case][2])
    right, _ = from_state_dict(tensors, layout.name, **told)
    images = draw_images(right.config, seed)
    if mutation is not None:
        tensors, told = mutation.of(tensors, told)
    with mutation.applied() if mutation is not None else contextlib.nullcontext():
        model, params = from_state_dict(tensors, layout.name, **told)
        peer = peer_of(module, [], layout, right.config, images)
        report = compare_peer(peer, model, params, images, "A small trunk of random weights in Flax")
    report.mutation = mutation and mutation.name
    return report
