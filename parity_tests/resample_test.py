"""Resized position tables and patch kernels, against the libraries whose rule each mode is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_tests.peers import import_timm, import_torchvision, import_transformers
from vit_flax.models.resample import MODES, PATCH_MODES, resize_patch_embed, resize_pos_embed
from vit_flax.parity.tolerances import FLOAT32_SEEN, FLOAT64_ROUNDING

TORCH = {
    "bicubic": {"mode": "bicubic"},
    "bicubic_corners": {"mode": "bicubic", "align_corners": True},
    "bicubic_antialias": {"mode": "bicubic", "antialias": True},
    "bilinear": {"mode": "bilinear"},
    "bilinear_antialias": {"mode": "bilinear", "antialias": True},
}
# native, larger, smaller, not square, odd, one row, one token
GRIDS = ((14, 14), (16, 16), (37, 37), (7, 7), (14, 9), (3, 20), (1, 5), (1, 1))


def random_table(grid: tuple[int, int], prefix: int, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, 1.0, (1, prefix + grid[0] * grid[1], dim))


def by_library(grid: torch.Tensor, new: tuple[int, int], mode: str) -> torch.Tensor:
    """Resizes (1, D, H, W)."""
    old = tuple(grid.shape[2:])
    if mode == "zoom":
        factor = (1.0, new[0] / old[0], new[1] / old[1])
        return torch.from_numpy(np.asarray(scipy.ndimage.zoom(grid[0].numpy(), factor, order=1)))[None]
    if mode == "bicubic_offset":
        factor = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
        return F.interpolate(grid, scale_factor=factor, mode="bicubic")
    if mode == "bilinear_crop":
        side = max(new)
        return F.interpolate(grid, size=(side, side), mode="bilinear")[..., : new[0], : new[1]]
    if mode == "tiled":
        return grid.tile(1, 1, new[0] // old[0] + 1, new[1] // old[1] + 1)[..., : new[0], : new[1]]
    return F.interpolate(grid, size=new, **TORCH[mode])


def expected_table(table: np.ndarray, old, new, prefix: int, mode: str) -> np.ndarray:
    grid = torch.from_numpy(table[:, prefix:]).reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = by_library(grid, new, mode).permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).numpy()
    return np.concatenate([table[:, :prefix], resized], axis=1)


def assert_close(ours, theirs) -> None:
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= FLOAT64_ROUNDING * np.abs(theirs).max()


class TestAgainstTorchAndScipy:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("new", GRIDS)
    @pytest.mark.parametrize("old", GRIDS)
    def test_every_mode_for_every_pair_of_grids(self, mode, old, new):
        table = random_table(old, 2)
        ours = resize_pos_embed(table, old, new, 2, mode)
        if old == new:
            assert ours is table
        else:
            assert_close(ours, expected_table(table, old, new, 2, mode))

    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from(list(MODES)),
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.integers(0, 5),
    )
    def test_any_grid(self, mode, old, new, prefix):
        table = random_table(old, prefix, 2)
        ours = resize_pos_embed(table, old, new, prefix, mode)
        if old != new:
            assert_close(ours, expected_table(table, old, new, prefix, mode))

    @pytest.mark.parametrize("mode", MODES)
    def test_jax_arrays_under_jit_and_the_gradient(self, mode):
        old, new = (7, 5), (4, 9)
        table = random_table(old, 1)
        resize = jax.jit(lambda t: resize_pos_embed(t, old, new, 1, mode))
        expected = expected_table(table, old, new, 1, mode)
        assert_close(resize(jnp.asarray(table)), expected)
        weights = np.random.default_rng(1).normal(size=expected.shape)
        gradient = jax.grad(lambda t: jnp.vdot(weights, resize(t)))(jnp.asarray(table))
        if mode == "zoom":
            other = resize_pos_embed(np.eye(36)[None], old, new, 1, mode)[0].T @ weights[0]
            assert_close(gradient, other[None])
            return
        leaf = torch.from_numpy(table).requires_grad_()
        grid = leaf[:, 1:].reshape(1, *old, -1).permute(0, 3, 1, 2)
        resized = by_library(grid, new, mode).permute(0, 2, 3, 1).reshape(1, 36, -1)
        torch.sum(torch.cat([leaf[:, :1], resized], 1) * torch.from_numpy(weights)).backward()
        assert leaf.grad is not None
        assert_close(gradient, leaf.grad)

    def test_each_mode_differs_from_every_other(self):
        table = random_table((14, 14), 1)
        results = [resize_pos_embed(table, (14, 14), (11, 23), 1, mode) for mode in MODES]
        for i, one in enumerate(results):
            assert all(np.abs(one - other).max() > 10 * FLOAT32_SEEN for other in results[:i])

    def test_scipy_leaves_the_last_row_empty_for_some_sizes_and_so_do_we(self):
        table = random_table((16, 16), 0)
        ours = resize_pos_embed(table, (16, 16), (30, 30), 0, "zoom").reshape(30, 30, -1)
        assert not ours[-1].any()
        assert ours[-2].any()


@pytest.fixture
def _float64(monkeypatch):
    """Makes the libraries' casts to float32 casts to float64: their rule is judged, not their rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "float32", torch.float64)


@pytest.mark.usefixtures("_float64")
class TestAgainstTheLibraries:
    @pytest.mark.parametrize("new", [(10, 10), (21, 21), (9, 16)])
    @pytest.mark.parametrize(
        ("mode", "options"),
        [
            ("bicubic_antialias", {}),
            ("bicubic", {"antialias": False}),
            ("bilinear", {"interpolation": "bilinear", "antialias": False}),
        ],
    )
    def test_timm(self, mode, options, new):
        import_timm()
        from timm.layers.pos_embed import resample_abs_pos_embed

        table = random_table((14, 14), 5)
        theirs = resample_abs_pos_embed(torch.from_numpy(table), list(new), num_prefix_tokens=5, **options)
        assert_close(resize_pos_embed(table, (14, 14), new, 5, mode), theirs)

    @pytest.mark.parametrize("new", [(14, 14), (42, 42), (28, 63)])
    @pytest.mark.parametrize("mode", ["bicubic", "bicubic_antialias"])
    def test_hugging_face_dinov2(self, mode, new):
        transformers = import_transformers()
        size = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 35, "patch_size": 7}
        if mode == "bicubic":
            from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings as Embeddings

            config = transformers.Dinov2Config(**size)
        else:
            from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
                Dinov2WithRegistersEmbeddings as Embeddings,
            )

            config = transformers.Dinov2WithRegistersConfig(**size)
        self.check_hugging_face(Embeddings(config), mode, new, 7)

    @pytest.mark.parametrize("new", [(14, 14), (42, 42), (28, 63)])
    def test_hugging_face_vit(self, new):
        transformers = import_transformers()
        from transformers.models.vit.modeling_vit import ViTEmbeddings

        config = transformers.ViTConfig(hidden_size=4, num_attention_heads=1, image_size=35, patch_size=7)
        self.check_hugging_face(ViTEmbeddings(config), "bicubic", new, 7)

    @pytest.mark.parametrize("new", [(14, 14), (42, 42), (28, 63)])
    def test_hugging_face_clip(self, new):
        transformers = import_transformers()
        from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

        config = transformers.CLIPVisionConfig(hidden_size=4, num_attention_heads=1, image_size=35, patch_size=7)
        self.check_hugging_face(CLIPVisionEmbeddings(config), "bicubic", new, 7)

    def check_hugging_face(self, embeddings, mode, new, patch):
        table = random_table((5, 5), 1)
        if hasattr(embeddings, "position_embedding"):
            embeddings.position_embedding.weight.data = torch.from_numpy(table[0])
        else:
            embeddings.position_embeddings.data = torch.from_numpy(table)
        grid = (new[0] // patch, new[1] // patch)
        tokens = torch.zeros(1, 1 + grid[0] * grid[1], 4, dtype=torch.float64)
        with torch.no_grad():
            theirs = embeddings.interpolate_pos_encoding(tokens, *new)
        assert_close(resize_pos_embed(table, (5, 5), grid, 1, mode), theirs)

    @pytest.mark.parametrize("image_size", [32, 96, 272])
    def test_torchvision(self, image_size):
        import_torchvision()
        from torchvision.models.vision_transformer import interpolate_embeddings

        table = random_table((5, 5), 1)
        state = {"encoder.pos_embedding": torch.from_numpy(table)}
        theirs = interpolate_embeddings(image_size, 16, state)["encoder.pos_embedding"]  # pyright: ignore[reportArgumentType]
        side = image_size // 16
        assert_close(resize_pos_embed(table, (5, 5), (side, side), 1, "bicubic_corners"), theirs)


def by_definition(kernel: np.ndarray, new, mode: str) -> np.ndarray:
    """Resizes by FlexiViT's formula: the pseudo-inverse of the whole resize, built from basis patches."""
    old = kernel.shape[:2]
    basis = torch.eye(old[0] * old[1], dtype=torch.float64).reshape(-1, 1, *old)
    resize = F.interpolate(basis, size=new, **TORCH[mode]).reshape(len(basis), -1).numpy()
    flat = np.linalg.pinv(resize) @ kernel.reshape(len(basis), -1)
    return flat.reshape(*new, *kernel.shape[2:])


class TestPatchKernel:
    @pytest.mark.parametrize("mode", PATCH_MODES)
    @pytest.mark.parametrize("new", [(8, 8), (20, 20), (5, 13), (12, 10)])
    def test_the_formula(self, mode, new):
        kernel = np.random.default_rng(2).normal(size=(12, 10, 3, 4))
        expected = by_definition(kernel, new, mode) if new != (12, 10) else kernel
        assert_close(resize_patch_embed(kernel, new, mode), expected)
        assert_close(resize_patch_embed(jnp.asarray(kernel), new, mode), expected)

    @pytest.mark.parametrize("new", [(8, 8), (20, 20), (5, 13)])
    @pytest.mark.parametrize(
        ("mode", "options"),
        [("bicubic_antialias", {}), ("bilinear", {"interpolation": "bilinear", "antialias": False})],
    )
    def test_timm(self, mode, options, new, monkeypatch):
        import_timm()
        from timm.layers import patch_embed

        monkeypatch.setattr(patch_embed, "DTYPE_INTERMEDIATE", torch.float64)
        monkeypatch.setattr(patch_embed._compute_resize_matrix, "__defaults__", (torch.float64,))
        monkeypatch.setattr(patch_embed._apply_resampling, "__defaults__", (torch.float64,))
        kernel = np.random.default_rng(2).normal(size=(12, 10, 3, 4))
        theirs = patch_embed.resample_patch_embed(torch.from_numpy(kernel.transpose(3, 2, 0, 1)), list(new), **options)
        assert_close(resize_patch_embed(kernel, new, mode), theirs.permute(2, 3, 1, 0))

    @pytest.mark.parametrize("mode", PATCH_MODES)
    def test_a_grown_patch_gives_the_same_token(self, mode):
        rng = np.random.default_rng(3)
        patch, kernel = rng.normal(size=(6, 6)), rng.normal(size=(6, 6, 1, 5))
        grown = F.interpolate(torch.from_numpy(patch)[None, None], size=(9, 14), **TORCH[mode])[0, 0].numpy()
        token = np.einsum("hw,hwcd->d", patch, kernel)
        assert_close(np.einsum("hw,hwcd->d", grown, resize_patch_embed(kernel, (9, 14), mode)), token)
