"""Shapes derived from one block are those of the whole model."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from vit_flax.config import (
    BLOCKS,
    BeitConfig,
    LucidrainsViTConfig,
    NaFlexViTConfig,
    RopeViTConfig,
    T2TViTConfig,
    ViTConfig,
)
from vit_flax.models import build_model
from vit_flax.models.shapes import expected_shapes

SMALL: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 12, "num_heads": 2}
SOFT_SPLITS = {name: value for name, value in SMALL.items() if name != "patch_size"}
CONFIGS: dict[str, ViTConfig] = {
    **{block: ViTConfig(**SMALL, block=block) for block in BLOCKS if block != "multi_scale"},
    "rope": RopeViTConfig(**SMALL, rope_type="mixed", rope_rotate_half=False, rope_theta=10.0, key_bias=True),
    "beit": BeitConfig(**SMALL, shared_rel_pos_bias=True, rel_pos_bias=True),
    "naflex": NaFlexViTConfig(**SMALL),
    "lucidrains": LucidrainsViTConfig(**SMALL),
    "t2t": T2TViTConfig(**SOFT_SPLITS, softsplit_kernels=(3, 3, 3), token_chan=16),
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("scan", [False, True])
def test_one_block_tells_of_all(family: str, scan: bool) -> None:
    config = CONFIGS[family]
    model = build_model(config, scan=scan)
    images = jax.ShapeDtypeStruct((1, *config.image_size, config.in_chans), jnp.float32)
    whole: dict[str, Any] = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images)["params"], sep="/")  # pyright: ignore[reportAssignmentType]
    assert expected_shapes(model) == {path: leaf.shape for path, leaf in whole.items()}
