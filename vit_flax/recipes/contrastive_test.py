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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.batch_size": 1}, r"data\.batch_size must be at least 2"),  # whose softmax is 1 and loss 0
        ({"model.vocab_size": 30}, r"the image tower has no field 'vocab_size'; did you mean 'text_vocab_size'\?"),
    ],
)
def test_what_would_train_nothing_or_the_wrong_tower_is_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        get_recipe("shapes")().replace(changes)
    meant = get_recipe("shapes")().replace({"model.text_vocab_size": 30, "data.batch_size": 2})
    assert meant.model.text.vocab_size == 30
