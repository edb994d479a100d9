"""The contrastive recipes, reduced in size: their steps compile."""

import jax
import pytest

from vit_flax.recipes import get_recipe
from vit_flax.train.compilation import lower_step
from vit_flax.train.sharding import make_mesh

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "image_size": (32, 32)}
TEXT = {"text_depth": 1, "text_embed_dim": 16, "text_num_heads": 2, "text_vocab_size": 40, "text_output_dim": 16}


@pytest.mark.parametrize("name", ["clip_b16", "siglip_b16"])
def test_a_recipes_step_compiles_in_small(name: str) -> None:
    config = get_recipe(name)()
    classes = {"num_classes": 16} if config.model.num_classes else {}
    config = config.replace({"model": config.model.replace(**SMALL, **TEXT, **classes), "data.batch_size": 16})
    config = config.resolve(100)
    compiled = lower_step(config, make_mesh(config.mesh, jax.devices()[:1])).compile()
    assert compiled.memory_analysis() is not None
