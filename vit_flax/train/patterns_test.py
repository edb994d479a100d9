"""Ordered patterns, and the optimiser's use of them."""

import jax
import numpy as np
import pytest

from vit_flax.config import T2TViTConfig, ViTConfig
from vit_flax.models import build_model
from vit_flax.train.config import OptimizerConfig, TrainConfig
from vit_flax.train.optimizer import decay_mask, layer_decay_rules, trained_mask
from vit_flax.train.patterns import assign, assign_tree, paths_of, select

CONFIGS = [
    ViTConfig(image_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=2, num_heads=2, num_classes=3, reg_tokens=1),
    T2TViTConfig(
        image_size=(16, 16), embed_dim=8, depth=1, num_heads=2, token_chan=4, num_classes=3, pos_embed="sinusoid"
    ),
    ViTConfig(
        image_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=1, num_heads=2, num_classes=3, global_pool="map"
    ),
]


def _shapes(config: ViTConfig):
    images = np.zeros((1, *config.image_size, config.in_chans), np.float32)
    return jax.eval_shape(build_model(config).init, jax.random.key(0), images)["params"]


def test_the_first_match_wins_and_all_must_match() -> None:
    paths = ["blocks_0/norm1/scale", "head/kernel"]
    assert assign([("blocks_0/.*", 1), (".*", 2)], paths) == {paths[0]: 1, paths[1]: 2}
    with pytest.raises(ValueError, match="no rule matches head/kernel"):
        assign([("blocks_0/.*", 1), ("head", 2)], paths)  # a part of the path is no match
    with pytest.raises(ValueError, match="is no regular expression"):
        assign([("(", 1)], paths)
    with pytest.raises(
        ValueError, match=r"'haed/\.\*' matches no parameter; did you mean 'head'\? they begin with blocks_0, head"
    ):
        select(["haed/.*"], paths)


@pytest.mark.parametrize("config", CONFIGS, ids=["vit", "t2t", "map"])
def test_every_rule_list_covers_every_parameter(config: ViTConfig) -> None:
    shapes = _shapes(config)
    factors = assign(layer_decay_rules(config, 0.5), paths_of(shapes))
    assert factors["head/kernel"] == 1.0
    assert factors["blocks_0/attn/qkv/kernel"] == 0.5**config.depth
    assert min(factors.values()) == 0.5 ** (config.depth + 1)
    mask = decay_mask(OptimizerConfig(), config, shapes)
    flat = dict(zip(paths_of(shapes), jax.tree.leaves(mask), strict=True))
    assert {path for path, decayed in flat.items() if decayed} <= {
        p for p in flat if p.endswith(("kernel", "probe", "latent"))
    }


def test_freezing() -> None:
    shapes = _shapes(CONFIGS[1])

    def trained(**fields: object) -> set[str]:
        config = TrainConfig(model=CONFIGS[1], epochs=1, optimizer=OptimizerConfig(**fields))  # pyright: ignore
        flat = dict(zip(paths_of(shapes), jax.tree.leaves(trained_mask(config, shapes)), strict=True))
        return {path for path, is_trained in flat.items() if is_trained}

    assert trained() == set(paths_of(shapes)) - {"pos_embed"}  # a sinusoid, stored but never trained
    assert trained(train="head/.*") == {"head/kernel", "head/bias"}
    assert trained(freeze=("head/.*",)) == set(paths_of(shapes)) - {"pos_embed", "head/kernel", "head/bias"}
    biases, norms = trained(train=(".*/bias", "head/.*")), trained(train=(".*norm[^/]*/.*", "head/.*"))
    assert biases == {path for path in paths_of(shapes) if path.endswith("/bias")} | {"head/kernel"}
    assert norms == {path for path in paths_of(shapes) if "norm" in path or path.startswith("head/")}
    with pytest.raises(ValueError, match=r"did you mean 'bias'\?"):
        trained(train=".*/biass")
    with pytest.raises(ValueError, match="nothing is left to train"):
        trained(freeze=".*")


def test_rules_of_ones_own() -> None:
    shapes = _shapes(CONFIGS[0])
    mask = decay_mask(OptimizerConfig(decay=(("head/kernel", True), (".*", False))), CONFIGS[0], shapes)
    assert sum(jax.tree.leaves(mask)) == 1
    assert jax.tree.structure(assign_tree(((".*", 1),), shapes)) == jax.tree.structure(mask)
