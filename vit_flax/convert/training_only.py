"""Tensors of pre-training alone, which every layout and preset drops with a reason."""

from __future__ import annotations

import dataclasses

from vit_flax.config import ViTConfig
from vit_flax.convert.layout import Layout
from vit_flax.convert.rules import Drop, Rule

_MASK = "stands for masked patches in training, and the config says mask_token=False"
_HEAD = "the projection head of self-supervised training"
_DECODER = "a decoder, such as rebuilds masked patches in pre-training"
_BLOCKS = "what stands after the model in pre-training"
_INDEX = "which row of a table belongs to two places follows from the grid"

# Names as they are when wrappers and prefixes are off.
_DROPS = {
    **dict.fromkeys(("mask_token", "masked_embed", "embeddings.mask_token"), "stands for masked patches in training"),
    **dict.fromkeys(("lm_head.{rest}", "cls_lm_head.{rest}"), "the head that predicts masked patches in pre-training"),
    **dict.fromkeys(("cls_pt_layers.{rest}", "regression_head.{rest}", "predictor.{rest}"), _BLOCKS),
    **dict.fromkeys(("decoder.{rest}", "decoder_{rest}", "mask_decoder.{rest}"), _DECODER),
    **dict.fromkeys(("dino_head.{rest}", "ibot_head.{rest}"), _HEAD),
    "rasa_head.{rest}": "Franca's, which stands after the model and takes the patches' places off their tokens",
    **dict.fromkeys(("projector.{rest}", "projection_head.{rest}", "prototypes.{rest}"), _HEAD),
    **dict.fromkeys(("momentum_{rest}", "queue", "queue_ptr"), "the momentum branch of contrastive training"),
    **dict.fromkeys(("blocks.{i}.attn.relative_position_index", "rel_pos_bias.relative_position_index"), _INDEX),
}  # fmt: skip
DROPS = tuple(Drop(name, reason, otherwise=True) for name, reason in _DROPS.items())


def without_training(layout: Layout) -> Layout:
    """Returns the layout with drops for tensors of pre-training alone that its own rules do not match."""

    def rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
        own = layout.rules(config)
        if not config.mask_token:
            own = tuple(
                Drop(rule.sources[0], _MASK) if isinstance(rule, Rule) and rule.target == "mask_token" else rule
                for rule in own
            )
        return (*own, *DROPS)

    return dataclasses.replace(layout, rules=rules)
