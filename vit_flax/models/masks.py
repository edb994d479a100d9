"""Which parameters an optimiser decays and trains, as trees of booleans for optax."""

from typing import Any

from flax.traverse_util import path_aware_map

from vit_flax.config import FIXED_POS_EMBEDS, RopeViTConfig, ViTConfig


def no_weight_decay(config: ViTConfig) -> set[str]:
    """Returns the parameters that weight decay spares.

    Reference: ViT_Backbone.no_weight_decay() of the tutorial; timm spares the other prefix tokens, a learned
    position table and learned frequencies of rotation as well.
    """
    learned = ["pos_embed"] * (config.pos_embed == "learned")
    learned += ["rope_freqs"] * (isinstance(config, RopeViTConfig) and config.rope_type == "mixed")
    return {"cls_token", "dist_token", "reg_token", *learned}


def weight_decay_mask(config: ViTConfig, params: Any) -> Any:
    """Returns True for each parameter that weight decay applies to, for optax.adamw(mask=...).

    What is stored but never trained is no parameter of the torch optimiser, so it is not decayed either.
    """
    spared = no_weight_decay(config) | {"pos_embed", "random_features"}
    return path_aware_map(lambda path, _: path[-1] not in spared, params)


def trainable_mask(config: ViTConfig, params: Any) -> Any:
    """Returns False for each parameter that is stored but never trained: a fixed position table, random features."""
    fixed = {"random_features", *(["pos_embed"] if config.pos_embed in FIXED_POS_EMBEDS else [])}
    return path_aware_map(lambda path, _: path[-1] not in fixed, params)
