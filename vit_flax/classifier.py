"""Replaces a model's classifier by a new one, as timm's num_classes and reset_classifier do."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vit_flax.config import ATTENTION_POOLS, ViTConfig
from vit_flax.convert import Drop, Layout, Rule
from vit_flax.convert.moves import source_shapes
from vit_flax.convert.rules import match_template
from vit_flax.models import VisionTransformer
from vit_flax.models.shapes import expected_shapes

HEADS = ("head", "head_dist")  # top-level names of parameters
_STD = 0.02  # of a new layer's weights, as vit_flax.models.linear has it


@dataclasses.dataclass(frozen=True)
class Replacement:
    """The replacement of a checkpoint's classifier by one of another number of classes."""

    rules: tuple[Rule | Drop, ...]  # the layout's, without the classifier's
    fresh: Mapping[str, tuple[int, ...]]  # shapes of newly initialised parameters, by path
    note: str


def find_replacement(
    layout: Layout,
    config: ViTConfig,
    rules: Sequence[Rule | Drop],
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
) -> Replacement | None:
    """Returns the replacement for a model of `config`; None where the checkpoint's classifier fits it."""
    own = [rule for rule in rules if isinstance(rule, Rule) and is_head(rule.target)]
    roots = {root for root, _ in layout.heads} | {source.rpartition(".")[0] for r in own for source in r.sources}
    there = sorted(n for n in shapes if any(n.startswith(f"{root}.") for root in roots if root) or _named(own, n))
    fresh = {path: shape for path, shape in expected.items() if is_head(path)}
    kept = [rule for rule in own if rule.target in fresh]
    wanted = {n: s for r in kept for n, s in zip(r.sources, source_shapes(r, fresh[r.target]), strict=True)}
    # many layouts have no place for a classifier
    has_rules = all(
        any(isinstance(r, Rule) and match_template(r.target, path) is not None for r in rules) for path in fresh
    )
    if has_rules and wanted == {name: tuple(shapes[name]) for name in there}:
        return None
    reason = f"the classifier, since `num_classes={config.num_classes}` was asked for"
    others = tuple(rule for rule in rules if rule not in own)
    drops = tuple(Drop(name, reason, otherwise=True) for name in there)
    what = f"left out: {', '.join(there[:4])}" if there else "there is none"
    new = (
        f"a new one of {config.num_classes} classes has random weights" if config.num_classes else "the model has none"
    )
    return Replacement((*others, *drops), fresh, f"the checkpoint's classifier ({what}): {new}")


def is_head(path: str) -> bool:
    """Returns whether a parameter is the classifier's."""
    return path.split("/")[0] in HEADS


def several_layers(layout: Layout, unexpected: Collection[str]) -> str:
    """Returns advice on a checkpoint's classifier of several layers, which no layout holds; '' where it has none."""
    for root, _ in layout.heads:
        layers = sorted({name.rpartition(".")[0] for name in unexpected if root and name.startswith(f"{root}.")})
        if layers:
            return (
                f"the classifier {root!r} has other layers than this layout's ({', '.join(layers[:4])}): pass "
                "`num_classes=0` to leave it out, or another number of classes for a new one"
            )
    return ""


def _named(rules: Sequence[Rule], name: str) -> bool:
    return any(name in rule.sources for rule in rules)


def fresh_parameters(
    shapes: Mapping[str, tuple[int, ...]], dtype: DTypeLike = jnp.float32, seed: int = 0
) -> dict[str, PyTree]:
    """Initialises parameters of layers by path: normal weights, zero biases."""
    keys = jax.random.split(jax.random.key(seed), max(1, len(shapes)))
    return {
        path: jnp.zeros(shape, dtype) if path.endswith("bias") else _STD * jax.random.normal(key, shape, dtype)
        for key, (path, shape) in zip(keys, sorted(shapes.items()), strict=False)
    }


def reset_classifier(
    model: VisionTransformer, params: PyTree, num_classes: int, global_pool: str | None = None, seed: int = 0
) -> tuple[VisionTransformer, dict[str, PyTree]]:
    """Returns the model with a new classifier of `num_classes` (0: none), and its parameters; the rest is shared.

    Args:
        model: the model that `params` belong to; it stays as it is.
        params: its parameters.
        num_classes: classes of the new classifier, whose weights are random.
        global_pool: pooling before it; None keeps the model's. The final norm keeps its place.
        seed: seed of the random weights.

    Raises:
        ValueError: values do not fit the model, or `global_pool` is attention pooling that the model has no layers for.

    Reference: timm.models.VisionTransformer.reset_classifier.
    """
    old = model.config
    changes: dict[str, PyTree] = {"num_classes": num_classes}
    if global_pool is not None and global_pool != old.global_pool:
        if global_pool in ATTENTION_POOLS:
            raise ValueError(f"global_pool={global_pool!r} cannot be added: its query and layers would be untrained")
        changes["global_pool"] = global_pool
    new = model.clone(config=old.replace(**changes))
    expected = expected_shapes(new)
    flat: dict[str, PyTree] = flatten_dict(params, sep="/")  # pyright: ignore[reportAssignmentType]
    kept = {path: value for path, value in flat.items() if path in expected and not is_head(path)}
    dtype = next(iter(kept.values())).dtype
    heads = fresh_parameters({path: shape for path, shape in expected.items() if is_head(path)}, dtype, seed)
    return new, unflatten_dict({**kept, **heads}, sep="/")
