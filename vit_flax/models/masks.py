"""Masks of weight decay and of trainable parameters, as trees of booleans for optax."""

from flax.traverse_util import path_aware_map
from jaxtyping import PyTree

from vit_flax.config import FIXED_POS_EMBEDS, ModelConfig, TwoTowersConfig, ViTConfig


def no_weight_decay(config: ViTConfig) -> set[str]:
    """Returns the parameters that are exempt from weight decay.

    Reference: ViT_Backbone.no_weight_decay() of the tutorial; timm spares the other prefix tokens, a learned
    position table, learned frequencies of rotation and tables of relative position bias as well.
    """
    learned = ["pos_embed"] * (config.pos_embed == "learned")
    return {"cls_token", "dist_token", "reg_token", *learned, *config.tokens.spared, *config.position.spared}


def _never_trained(config: ViTConfig) -> set[str]:
    table = ["pos_embed"] * (config.pos_embed in FIXED_POS_EMBEDS)
    return {*table, *config.tokens.fixed, *config.position.fixed}


def weight_decay_mask(config: ModelConfig, params: PyTree) -> PyTree:
    """Returns True for each parameter that weight decay applies to, for optax.adamw(mask=...).

    What is stored but never trained is no parameter of the torch optimiser, so it is not decayed either. Of a model of
    images and texts, open_clip's rule: positions, and what scales and shifts the logits, are spared.
    """
    if isinstance(config, TwoTowersConfig):
        text = path_aware_map(lambda path, _: path[-1] != "pos_embed", params["text"])
        return _of_towers(params, weight_decay_mask(config.image, params["image"]), text, False)
    spared = no_weight_decay(config) | _never_trained(config)
    return path_aware_map(lambda path, _: path[-1] not in spared, params)


def trainable_mask(config: ModelConfig, params: PyTree) -> PyTree:
    """Returns False for each parameter that is stored but never trained: a fixed position table, random features."""
    if isinstance(config, TwoTowersConfig):
        text = path_aware_map(lambda path, _: True, params["text"])
        return _of_towers(params, trainable_mask(config.image, params["image"]), text, True)
    fixed = _never_trained(config)
    return path_aware_map(lambda path, _: path[-1] not in fixed, params)


def _of_towers(params: PyTree, image: PyTree, text: PyTree, others: bool) -> PyTree:
    """Returns the masks of two towers, and `others` for the logits' scale and bias."""
    return {name: {"image": image, "text": text}.get(name, others) for name in params}
