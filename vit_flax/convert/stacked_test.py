"""Stacked tensors: row by row and back, each stack read once."""

import numpy as np
import pytest

from vit_flax.convert.checkpoint import Checkpoint
from vit_flax.convert.moves import plan, to_params
from vit_flax.convert.rules import ConversionError, Rule
from vit_flax.convert.stacked import stack, unstack

TENSORS = {
    "encoder/blocks/norm/scale": np.arange(12.0).reshape(3, 4),
    "encoder/blocks/mlp/kernel": np.arange(30).reshape(3, 2, 5),
    "encoder/norm": np.arange(4.0),
}


def checkpoint(reads=None):
    def read(name):
        if reads is not None:
            reads.append(name)
        return TENSORS[name]

    return Checkpoint({name: array.shape for name, array in TENSORS.items()}, read)


def test_every_block_has_its_row():
    rows = unstack(checkpoint(), "encoder/blocks")
    assert rows.shapes["encoder/blocks_2/mlp/kernel"] == (2, 5)
    assert "encoder/blocks/mlp/kernel" not in rows.shapes
    np.testing.assert_array_equal(rows.read("encoder/blocks_1/norm/scale"), [4, 5, 6, 7])
    np.testing.assert_array_equal(rows.read("encoder/norm"), TENSORS["encoder/norm"])


def test_stacking_is_the_inverse():
    rows = unstack(checkpoint(), "encoder/blocks")
    back = stack({name: rows.read(name) for name in reversed(list(rows.shapes))}, "encoder/blocks")
    assert sorted(back) == sorted(TENSORS)
    assert all(np.array_equal(back[name], array) for name, array in TENSORS.items())


def test_blocks_beyond_the_ninth_keep_their_order():
    tensors = {f"blocks_{i}/bias": np.array([i]) for i in range(12)}
    np.testing.assert_array_equal(stack(tensors, "blocks")["blocks/bias"][:, 0], np.arange(12))


def test_a_stack_is_read_once_by_rules():
    reads = []
    rules = [
        Rule("encoder/blocks_{i}/norm/scale", "blocks_{i}/norm"),
        Rule("encoder/blocks_{i}/mlp/kernel", "blocks_{i}/mlp"),
        Rule("encoder/norm", "norm"),
    ]
    expected = {"norm": (4,)}
    for i in range(3):  # block by block, as a model has its parameters
        expected |= {f"blocks_{i}/norm": (4,), f"blocks_{i}/mlp": (2, 5)}
    rows = unstack(checkpoint(reads), "encoder/blocks")
    params = to_params(rows, plan(rows.shapes, rules, expected))
    np.testing.assert_array_equal(params["blocks_2/mlp"], TENSORS["encoder/blocks/mlp/kernel"][2])
    assert sorted(reads) == sorted(TENSORS)


def test_stacks_of_another_depth_are_reported():
    shapes = {"blocks/a": (2, 4), "blocks/b": (3, 4)}
    rows = unstack(Checkpoint(shapes, lambda name: np.zeros(shapes[name])), "blocks")
    rules = [Rule("blocks_{i}/{part}", "blocks_{i}/{part}")]
    expected = {f"blocks_{i}/{part}": (4,) for i in range(3) for part in "ab"}
    with pytest.raises(ConversionError, match="missing: blocks_2/a"):
        to_params(rows, plan(rows.shapes, rules, expected))
