import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vit_flax.models.resample import MODES, resize_patch_embed, resize_pos_embed
from vit_flax.parity.tolerances import FLOAT64_ROUNDING


@pytest.mark.parametrize("mode", MODES)
class TestEveryMode:
    def test_a_constant_table_stays_constant(self, mode):
        table = np.full((1, 26, 3), 2.5)
        np.testing.assert_allclose(resize_pos_embed(table, (5, 5), (8, 3), 1, mode), np.full((1, 25, 3), 2.5))

    def test_prefix_rows_keep_their_bits(self, mode):
        table = np.random.default_rng(0).normal(size=(1, 28, 3)).astype(np.float32)
        resized = resize_pos_embed(table, (5, 5), (6, 6), 3, mode)
        assert resized.shape == (1, 39, 3)
        np.testing.assert_array_equal(resized[:, :3], table[:, :3])

    def test_height_and_width_are_not_confused(self, mode):
        column = np.arange(4.0)[:, None, None] * np.ones((4, 6, 1))  # varies with the height alone
        resized = resize_pos_embed(column.reshape(1, 24, 1), (4, 6), (3, 9), 0, mode).reshape(3, 9)
        np.testing.assert_allclose(resized, resized[:, :1] * np.ones((3, 9)), atol=FLOAT64_ROUNDING)
        assert np.all(np.diff(resized[:, 0]) > 0)

    def test_the_dtype_stays(self, mode):
        table = np.random.default_rng(0).normal(size=(25, 3))
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            assert resize_pos_embed(table.astype(dtype), (5, 5), (6, 6), 0, mode).dtype == dtype
            assert resize_pos_embed(jnp.asarray(table, dtype), (5, 5), (6, 6), 0, mode).dtype == dtype


def test_a_table_of_another_length_is_refused_with_numbers():
    with pytest.raises(ValueError, match=r"1 prefix tokens and a 4x4 grid has 17 rows.*\(1, 16, 8\)"):
        resize_pos_embed(np.zeros((1, 16, 8)), (4, 4), (5, 5), 1, "bicubic")


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'lanczos'; known: bicubic, "):
        resize_pos_embed(np.zeros((1, 17, 8)), (4, 4), (5, 5), 1, "lanczos")
    with pytest.raises(ValueError, match="'zoom'; known: bicubic, "):
        resize_patch_embed(np.zeros((4, 4, 3, 8)), (5, 5), "zoom")
