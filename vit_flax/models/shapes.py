"""Shapes of a model's parameters, by jax.eval_shape."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from vit_flax.config import TextConfig, ViTConfig
from vit_flax.models.text_transformer import TextTransformer
from vit_flax.models.two_towers import TwoTowers
from vit_flax.models.vision_transformer import VisionTransformer

if TYPE_CHECKING:
    from vit_flax.models.depth_estimator import DepthEstimator
    from vit_flax.models.linear_depth import LinearDepthEstimator

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(model: VisionTransformer | TextTransformer | TwoTowers) -> Shapes:
    """Returns the shape of every parameter of a model by its path, tracing two of its blocks at the most if it can."""
    if isinstance(model, TwoTowers):
        cfg = model.config
        towers = {"image": VisionTransformer(cfg.image), "text": TextTransformer(cfg.text)}
        shapes: Shapes = {f"{name}/{p}": s for name, tower in towers.items() for p, s in expected_shapes(tower).items()}
        return shapes | {"logit_scale": ()} | ({"logit_bias": ()} if cfg.logit_bias else {})
    depth = model.config.depth
    if depth < 4 or not (isinstance(model, TextTransformer) or model.config.position.repeats):
        return _traced_shapes(model, depth)
    one, two = _traced_shapes(model, 1), _traced_shapes(model, 2)
    if any(two[path] != shape for path, shape in one.items()):
        return _traced_shapes(model, depth)  # layers outside the blocks know the depth
    alike = (0,) * depth if isinstance(model, TextTransformer) else model.config.position.representatives(depth)
    found = one if not any(alike) else _traced_shapes(model, max(alike) + 1)
    rest = {path: shape for path, shape in one.items() if not path.startswith("blocks_0/")}
    split = [(*path.split("/", 1), shape) for path, shape in found.items() if path not in rest]
    names = [(f"blocks_{i}", f"blocks_{own}") for i, own in enumerate(alike)]
    return rest | {f"{name}/{path}": shape for name, own in names for block, path, shape in split if block == own}


def expected_part_shapes(model: DepthEstimator | LinearDepthEstimator, parts: Iterable[str]) -> Shapes:
    """Returns the shape of every parameter of parts of a dense model, by its path."""
    cfg = model.config.backbone
    images = jax.ShapeDtypeStruct((1, *cfg.image_size, cfg.in_chans), jnp.float32)
    made: Any = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    flat: dict[str, Any] = flatten_dict({name: made[name] for name in parts}, sep="/")  # pyright: ignore[reportAssignmentType]
    return {path: leaf.shape for path, leaf in flat.items()}


def _traced_shapes(model: VisionTransformer | TextTransformer, depth: int) -> Shapes:
    """Does so for that many blocks by tracing all of them."""
    return dict(_shapes_of(type(model), model.config.replace(depth=depth)))


@lru_cache(maxsize=64)  # a file is read, converted and written with one config
def _shapes_of(kind: type[Any], cfg: ViTConfig | TextConfig) -> Shapes:
    if isinstance(cfg, TextConfig):
        images = jax.ShapeDtypeStruct((1, cfg.context_length), jnp.int32)
    else:
        images = jax.ShapeDtypeStruct((1, *cfg.image_size, cfg.in_chans), jnp.float32)
    variables = jax.eval_shape(kind(cfg).init, jax.random.key(0), images)
    flat: dict[str, Any] = flatten_dict(variables["params"], sep="/")  # pyright: ignore[reportAssignmentType]
    return {path: leaf.shape for path, leaf in flat.items()}
