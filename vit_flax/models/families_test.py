"""Families as values: a toy one is added from here, any two parts go together, and shared code knows none by name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from vit_flax.config import (
    FAMILIES,
    BeitConfig,
    KeyMask,
    LucidrainsViTConfig,
    NaFlexViTConfig,
    NormedPatches,
    Patches,
    Position,
    RelativeBias,
    RopeViTConfig,
    Rotation,
    SoftSplits,
    T2TViTConfig,
    ViTConfig,
    ViTFamily,
    WindowedViTConfig,
    config_from_dict,
)
from vit_flax.models import build_model, weight_decay_mask
from vit_flax.models.parts import POSITIONS
from vit_flax.models.position import Positions
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_LIBRARIES, FLOAT32_ROUNDING, FLOAT32_SEEN
from vit_flax.train.optimizer import layer_decay_rules
from vit_flax.train.patterns import assign
from vit_flax.train.sharding import AXES, partitioned

SIZES: dict[str, Any] = {"image_size": 16, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
SMALL: dict[str, Any] = {**SIZES, "patch_size": 8}
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 1)), jnp.float32)


def _run(config: ViTConfig, **fields: Any) -> tuple[Any, Any]:
    """Returns the output of a model with parameters that are all different from 0, and the parameters."""
    model = build_model(config)
    params = jax.jit(model.init)(jax.random.key(0), IMAGES)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, moved)
    return jax.jit(build_model(config, **fields).apply)({"params": params}, IMAGES), params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance(Position):
    """Logits fall with the distance of two tokens in the sequence, by a learned slope for each head."""

    first_slope: float = 1.0

    spared: ClassVar[tuple[str, ...]] = ("slopes",)


class DistancePositions(Positions):
    def setup_attention(self, attention: Any) -> None:
        start = jax.nn.initializers.constant(self.config.first_slope)
        attention.slopes = attention.param("slopes", start, (attention.num_heads,))

    def apply(self, attention: Any, q: Any, k: Any, scale: float, given: Any) -> Any:
        place = jnp.arange(q.shape[2])
        return q, k, -attention.slopes[None, :, None, None] * jnp.abs(place[:, None] - place)


def test_a_family_is_its_file_and_a_line_in_each_table(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = ViTFamily("DistanceConfig", Patches, Distance, {"pos_embed": "none"})
    monkeypatch.setitem(FAMILIES, toy.name, toy)
    monkeypatch.setitem(POSITIONS, Distance, DistancePositions)
    config = toy(**SMALL, first_slope=0.5)
    assert config_from_dict(config.to_dict()) == config
    assert config.replace(first_slope=2.0).first_slope == 2.0
    logits, params = _run(config)
    np.testing.assert_array_equal(logits, _run(config, scan=True)[0])
    plain = jax.jit(build_model(ViTConfig(**SMALL, pos_embed="none")).apply)(
        {"params": _without(params, "slopes")}, IMAGES
    )
    assert np.abs(logits - plain).max() > 10 * FLOAT32_SEEN
    assert not weight_decay_mask(config, params)["blocks_0"]["attn"]["slopes"]
    # no kernel that knows nothing of positions computes it
    assert not DistancePositions(config).is_identity
    assert Positions().is_identity


def _without(params: Any, name: str) -> Any:
    rest = {key: value for key, value in params.items() if key != name}
    return {key: _without(value, name) if isinstance(value, dict) else value for key, value in rest.items()}


@pytest.mark.parametrize(
    ("tokens", "position"),
    [(SoftSplits(softsplit_kernels=(3, 3, 3), token_chan=4), Rotation()),
     (NormedPatches(patch_size=(8, 8)), RelativeBias()),
     (Patches(patch_size=(8, 8)), KeyMask())],
)  # fmt: skip
def test_any_two_parts_go_together(tokens: Any, position: Any) -> None:
    config = ViTConfig(**SIZES, tokens=tokens, position=position)
    assert config_from_dict(config.to_dict()) == config
    assert _run(config)[0].shape == (2, 3)


@pytest.mark.parametrize("field", ["patch_norm", "patch_bias", "crop_to_patches", "patch_size"])
def test_soft_splits_have_no_field_of_patches(field: str) -> None:
    with pytest.raises(ValueError, match=f"T2TViTConfig has no field '{field}'"):
        T2TViTConfig(**{field: 8})


def test_what_two_parts_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="a class token and patches alone"):
        BeitConfig(**SMALL, reg_tokens=2)
    with pytest.raises(ValueError, match="parallel_scaling"):
        RopeViTConfig(**SMALL, block="parallel_scaling")
    with pytest.raises(ValueError, match="'rope_theta'"):
        ViTConfig(rope_theta=3.0)


def test_tables_of_relative_positions_are_not_decayed_and_a_shared_one_is_of_the_stem() -> None:
    config = BeitConfig(**SMALL, shared_rel_pos_bias=True)
    params = jax.eval_shape(build_model(config).init, jax.random.key(0), IMAGES)["params"]
    mask = weight_decay_mask(config, params)
    table = "relative_position_bias_table"
    assert not mask["rel_pos_bias"][table]
    assert not mask["blocks_0"]["attn"]["rel_pos_bias"][table]
    assert mask["blocks_0"]["attn"]["qkv"]["kernel"]
    paths = [f"rel_pos_bias/{table}", f"blocks_1/attn/rel_pos_bias/{table}", "cls_token", "head/kernel"]
    found = assign(layer_decay_rules(config, 0.5), paths)
    assert [found[path] for path in paths] == [0.125, 0.5, 0.125, 1.0]


def test_every_entry_point_of_padded_patches_works() -> None:
    config = NaFlexViTConfig(**SMALL)
    model = build_model(config)
    params = jax.jit(model.init)(jax.random.key(0), IMAGES)["params"]
    call = jax.jit(lambda x, method: model.apply({"params": params}, x, method=method), static_argnums=1)
    tokens = call(IMAGES, "embed")
    np.testing.assert_allclose(call(tokens, "backbone"), call(IMAGES, None), rtol=FLOAT32_ROUNDING)
    assert call(tokens, "encode").shape == call(IMAGES, "features").shape == (2, 4, 16)
    with pytest.raises(ValueError, match="one head"):
        call(IMAGES, "both_heads")
    # all tokens kept, in the config's own grid: the same as images
    whole = (jnp.ones((2, 4), bool), jnp.asarray([[2, 2], [2, 2]]))
    patches = IMAGES.reshape(2, 2, 8, 2, 8, 1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 64)
    masked = jax.jit(model.apply)({"params": params}, patches, *whole)
    np.testing.assert_allclose(masked, call(IMAGES, None), rtol=FLOAT32_LIBRARIES["rtol"], atol=FLOAT32_ABSOLUTE)


HEADS = {
    "plain": ViTConfig(**SMALL), "rotation": RopeViTConfig(**SMALL), "relative bias": BeitConfig(**SMALL),
    "key mask": NaFlexViTConfig(**SMALL), "wide": LucidrainsViTConfig(**SMALL),
    "diff": ViTConfig(**SMALL, block="diff"), "windows": WindowedViTConfig(**SMALL, window_size=3),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_every_attention_are_split_by_tensor(name: str) -> None:
    model = build_model(HEADS[name])
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    with partitioned(AbstractMesh((1, 1, 2), AXES, axis_types=(AxisType.Auto,) * 3)):  # pyright: ignore[reportArgumentType]
        text = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, IMAGES))(params))
    text = " ".join(text.split())  # the printer breaks lines
    assert len(re.findall(r"P\(\('data', 'fsdp'\), None, None, 'tensor'\)", text)) == SMALL["depth"]


def test_shared_code_knows_no_family_by_name() -> None:
    families = "|".join(["PlainViTConfig", *FAMILIES])
    parts = "|".join(kind.__name__ for family in FAMILIES.values() for kind in (family.tokens, family.position))
    sides = "|".join(kind.__name__ for kind in POSITIONS.values() if isinstance(kind, type))
    names = rf"isinstance\([^)]*\b({parts}|{sides})\b|type\([\w.]*(config|position|tokens)\w*\) (is|in|==|!=|not) "
    names += rf"|(==|!=|\bis|\bis not|\bin) ({families})\b(?!\.)|[{{,] *\"?({families})\"?: "  # also as a table's key
    root = Path(__file__).parent.parent
    own = {"tokens_to_token.py"}  # the file of SoftSplits
    wrong = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        if not path.name.endswith("_test.py") and path.name not in own
        for line in path.read_text("utf-8").splitlines()
        if re.search(names, line)
    ]
    assert wrong == []
