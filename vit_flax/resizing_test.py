import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import vit_flax
from vit_flax import ConversionError, ViTConfig
from vit_flax.convert import LAYOUTS, Wish, read_checkpoint
from vit_flax.convert.explained import EXPLAINED
from vit_flax.models import build_model
from vit_flax.models.resample import resize_pos_embed
from vit_flax.reading import read_model

CONFIG = ViTConfig(
    image_size=(16, 16), patch_size=(4, 4), in_chans=2, num_classes=3, embed_dim=8, depth=1, num_heads=2,
    value_skip=True, norm_eps=1e-5,
)  # fmt: skip

RESIZED = Wish(overrides={"image_size": 24})


@pytest.fixture(autouse=True)
def _layouts(monkeypatch):
    """A layout with learned positions that resizes them, and one that does not say how."""
    fixed = {**EXPLAINED.fixed, "pos_embed": ("learned", "sinusoid")}
    for name, mode in (("resizing", "bicubic"), ("silent", "")):
        layout = dataclasses.replace(EXPLAINED, name=name, fixed=fixed, resample=lambda _, mode=mode: mode)
        monkeypatch.setitem(LAYOUTS, name, layout)


def tensors(config: ViTConfig = CONFIG) -> dict[str, np.ndarray]:
    model = build_model(config)
    images = np.zeros((1, *config.image_size, config.in_chans), np.float32)
    params = model.init(jax.random.key(0), images)["params"]
    return vit_flax.to_state_dict(model, params, "resizing")


def load(state, layout="resizing", config: ViTConfig | None = CONFIG, **changes):
    return vit_flax.from_state_dict(state, layout, config, **changes)


@pytest.mark.parametrize("size", [(24, 24), (8, 8), (12, 28), (16, 20)])
def test_another_image_size_resizes_the_table_in_the_layouts_mode(size):
    state = tensors()
    model, params = load(state, image_size=size)
    table = state["backbone.pos_embed"]
    expected = resize_pos_embed(table, (4, 4), (size[0] // 4, size[1] // 4), 1, "bicubic")
    np.testing.assert_array_equal(params["pos_embed"], expected)
    assert params["pos_embed"].dtype == np.float32
    logits: Any = model.apply({"params": params}, np.ones((2, *size, 2), np.float32))
    assert logits.shape == (2, 3)


def test_the_mode_can_be_given():
    state = tensors()
    _, params = load(state, image_size=24, resample="zoom")
    expected = resize_pos_embed(state["backbone.pos_embed"], (4, 4), (6, 6), 1, "zoom")
    np.testing.assert_array_equal(params["pos_embed"], expected)
    with pytest.raises(ConversionError, match="unknown resampling mode 'cubic'; known: bicubic, "):
        load(state, image_size=24, resample="cubic")


def test_the_same_size_keeps_every_bit():
    state = tensors()
    cases: list[dict[str, Any]] = [{}, {"image_size": 16}, {"resample": "zoom"}, {"source_grid": (4, 4)}]
    for changes in cases:
        _, params = load(state, **changes)
        np.testing.assert_array_equal(params["pos_embed"], state["backbone.pos_embed"])


def test_a_layout_that_does_not_say_how_refuses_and_names_both_grids():
    with pytest.raises(
        ConversionError, match=r"a 6x6 grid of patches.* is for a 4x4 grid: layout 'silent' does not say"
    ):
        load(tensors(), "silent", image_size=24)
    load(tensors(), "silent", image_size=24, resample="bilinear")


def test_computed_tables_are_refused_unless_the_layout_resizes_them():
    state = tensors(CONFIG.replace(pos_embed="sinusoid"))
    with pytest.raises(ConversionError, match=r"6x6 grid.*4x4 grid: a table that is computed \(sinusoid\)"):
        load(state, "silent", CONFIG.replace(pos_embed="sinusoid"), image_size=24, resample="bicubic")


class TestSourceGrid:
    state = property(lambda _: tensors(CONFIG.replace(image_size=(8, 24))))  # 2x6

    def test_that_is_no_square_must_be_given(self):
        with pytest.raises(
            ConversionError, match=r"12 patches, which is no square: .* pass `source_grid=\(HEIGHT, WIDTH\)`"
        ):
            load(self.state, image_size=24)
        _, params = load(self.state, image_size=24, source_grid=(2, 6))
        expected = resize_pos_embed(self.state["backbone.pos_embed"], (2, 6), (6, 6), 1, "bicubic")
        np.testing.assert_array_equal(params["pos_embed"], expected)
        with pytest.raises(ConversionError, match="has 14 patches; the position table has 12"):
            load(self.state, image_size=24, source_grid=(2, 7))

    def test_that_the_config_tells_is_taken_from_it(self):
        _, params = load(self.state, config=CONFIG.replace(image_size=(8, 24)), image_size=24)
        expected = resize_pos_embed(self.state["backbone.pos_embed"], (2, 6), (6, 6), 1, "bicubic")
        np.testing.assert_array_equal(params["pos_embed"], expected)

    def test_of_as_many_patches_as_the_models_is_the_models_unless_a_config_or_the_caller_says_otherwise(self):
        state = tensors()
        table = state["backbone.pos_embed"]
        resized = resize_pos_embed(table, (4, 4), (2, 8), 1, "bicubic")
        wide = CONFIG.replace(image_size=(8, 32))
        cases: list[tuple[Any, dict[str, Any]]] = [
            (table, {"config": wide}),
            (resized, {"config": wide, "source_grid": (4, 4)}),
            (resized, {"image_size": (8, 32)}),  # the config says 4 x 4
            (table, {"image_size": (8, 32), "source_grid": (2, 8)}),
        ]
        for expected, arguments in cases:
            _, params = load(state, **arguments)
            np.testing.assert_array_equal(params["pos_embed"], expected)


def test_other_faults_are_still_listed_all():
    state = tensors()
    del state["backbone.norm.bias"]
    state["backbone.pos_embed"] = state["backbone.pos_embed"][:, :-1]
    with pytest.raises(
        ConversionError, match=r"(?s)missing: backbone.norm.bias.*misshapen: backbone.pos_embed.*15 patches"
    ):
        load(state)
    state["backbone.pos_embed"] = np.ones((1, 17, 9), np.float32)
    with pytest.raises(ConversionError, match=r"(?s)missing: backbone.norm.bias.*misshapen: backbone.pos_embed"):
        load(state)


def test_a_stored_config_and_what_inspect_says(tmp_path):
    model, params = load(tensors(CONFIG.replace(image_size=(8, 24))), config=CONFIG.replace(image_size=(8, 24)))
    vit_flax.save(tmp_path / "a.safetensors", model, params, "resizing")
    _, resized = vit_flax.load(tmp_path / "a.safetensors", image_size=24)
    expected = resize_pos_embed(np.asarray(params["pos_embed"]), (2, 6), (6, 6), 1, "bicubic")
    np.testing.assert_array_equal(resized["pos_embed"], expected)
    found = read_model(read_checkpoint(tmp_path / "a.safetensors"), RESIZED).to_dict()
    fates = {tensor["name"]: tensor["fate"] for tensor in found["tensors"]}
    assert fates["backbone.pos_embed"] == "-> pos_embed (as it is; resized 2x6 -> 6x6, bicubic)"
    assert found["problems"] == []
    silent = dataclasses.replace(RESIZED, layout="silent")
    found = read_model(read_checkpoint(tmp_path / "a.safetensors"), silent).to_dict()
    assert "does not say how to resize it" in found["problems"][-1]


def test_a_config_file_that_does_not_fit_its_tensors_is_no_wish_to_resize(tmp_path):
    model, params = load(tensors())
    vit_flax.save(tmp_path / "a.safetensors", model, params, "resizing")
    file = read_checkpoint(tmp_path / "a.safetensors")
    wrong = dataclasses.replace(file, config={**(file.config or {}), "image_size": [24, 24]})
    with pytest.raises(ConversionError, match=r"misshapen: .*\n.*4x4 grid: pass `image_size=\(24, 24\)` to say"):
        read_model(wrong, Wish()).build()
    read_model(wrong, RESIZED).build()
