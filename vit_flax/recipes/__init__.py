"""Named training runs: functions that return a TrainConfig, whose docstrings state measured results and commands."""

from __future__ import annotations

from collections.abc import Callable

from vit_flax.recipes.adapting import finetune, linear_probe
from vit_flax.recipes.contrastive import clip_b16, shapes, siglip_b16
from vit_flax.recipes.published import big_vision_s16, deit3_s16, deit_s16, t2t_vit_14
from vit_flax.recipes.small import digits, fashion_mnist, fashion_mnist_t2t
from vit_flax.suggestions import suggest
from vit_flax.train.config import TrainConfig

__all__ = ["RECIPES", "get_recipe"]

# every recipe by its name
RECIPES: dict[str, Callable[..., TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        digits, fashion_mnist, fashion_mnist_t2t, finetune, linear_probe, deit_s16, big_vision_s16, deit3_s16,
        t2t_vit_14, shapes, clip_b16, siglip_b16,
    )
}  # fmt: skip


def get_recipe(name: str) -> Callable[..., TrainConfig]:
    """Returns the recipe of that name.

    Raises:
        ValueError: there is none; the nearest is suggested.
    """
    if name in RECIPES:
        return RECIPES[name]
    raise ValueError(f"no recipe named {name!r}; {suggest(name, RECIPES, 'there are ' + ', '.join(RECIPES))}")
