"""Parameters of our own models, given as trees and files of JAX, and files of transformers' Flax models."""

from typing import Any

import jax
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from flax.core import freeze
from flax.traverse_util import flatten_dict, unflatten_dict

import vit_flax
from vit_flax.cli.main import main
from vit_flax.config import FAMILIES
from vit_flax.convert import ConversionError, msgpack_file, own_layout, read_checkpoint, unwrap
from vit_flax.models.shapes import expected_shapes

SIZES: dict[str, Any] = {"depth": 2, "embed_dim": 16, "num_heads": 2, "image_size": 32, "num_classes": 3}
MODEL = vit_flax.create_model("vit_tiny_patch16_224", **SIZES)


def random_params(model):
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in expected_shapes(model).items()}
    return unflatten_dict(flat, sep="/")


PARAMS = random_params(MODEL)


def assert_same(loaded) -> None:
    model, params = loaded
    assert model.config == MODEL.config
    flat: dict[str, Any] = flatten_dict(params, sep="/")  # pyright: ignore[reportAssignmentType]
    expected: dict[str, Any] = flatten_dict(PARAMS, sep="/")  # pyright: ignore[reportAssignmentType]
    assert set(flat) == set(expected)
    assert all(np.array_equal(flat[path], leaf) for path, leaf in expected.items())


@pytest.mark.parametrize(
    "tree",
    [
        PARAMS,
        {"params": PARAMS},
        freeze({"params": PARAMS}),
        flatten_dict(PARAMS),
        flatten_dict(PARAMS, sep="/"),
        flatten_dict({"params": PARAMS}, sep="."),
        {"state": {"params": jax.tree.map(jax.numpy.asarray, PARAMS), "step": 3}},
    ],
)
def test_trees_of_parameters(tree) -> None:
    assert_same(vit_flax.from_state_dict(tree, config=MODEL.config))


def test_orbax_folders(tmp_path, capsys) -> None:
    """Written by the library and the command, read by Orbax itself and again by both; nothing else is overwritten."""
    target = tmp_path / "a.orbax"
    told = vit_flax.Preprocessing(image_size=(32, 32), class_names=("a", "b", "c"))
    for params in (jax.tree.map(np.zeros_like, PARAMS), PARAMS):  # the second replaces the first
        vit_flax.save(target, MODEL, params, preprocessing=told)
    assert_same(vit_flax.load(target))
    theirs = ocp.PyTreeCheckpointer().restore(target / "params")
    jax.tree.map(np.testing.assert_array_equal, theirs, PARAMS)
    timm, again = tmp_path / "timm.safetensors", tmp_path / "again.orbax"
    assert main(["convert", str(target), str(timm), "--layout", "timm"]) == 0
    assert main(["convert", str(timm), f"{again}/"]) == 0
    assert_same(vit_flax.load(again))
    assert vit_flax.read_preprocessing(again).class_names == ("a", "b", "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.orbax", "again.orbax", "timm.safetensors"]
    (tmp_path / "mine.orbax").mkdir()
    for other, layout, said in (("a", "timm", "own parameters, in no other layout"), ("mine", "flax", "no folder of")):
        capsys.readouterr()
        assert main(["convert", str(timm), str(tmp_path / f"{other}.orbax"), "--layout", layout]) == 2
        assert said in capsys.readouterr().err


def test_they_do_not_tell_their_model() -> None:
    with pytest.raises(ConversionError, match=r"pass `config=CONFIG`, the model's config or a preset's name"):
        vit_flax.from_state_dict(PARAMS)
    preset = vit_flax.from_state_dict(PARAMS, config="vit_tiny_patch16_224", **SIZES)
    assert_same(preset)


@pytest.mark.parametrize("preset", ["eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_every_kind_of_model(preset) -> None:
    model = vit_flax.create_model(preset, depth=1)
    params = random_params(model)
    again, read = vit_flax.from_state_dict(params, config=model.config)
    assert again.config == model.config
    assert jax.tree.structure(read) == jax.tree.structure(params)


def test_files(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", **flatten_dict(PARAMS, sep="/"))  # pyright: ignore[reportArgumentType]
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes({"params": PARAMS}))
    for name in ("a.npz", "a.msgpack"):
        assert_same(vit_flax.load(tmp_path / name, config=MODEL.config))
    vit_flax.save(tmp_path / "b.msgpack", MODEL, PARAMS, layout="flax")
    assert_same((MODEL, serialization.from_bytes(PARAMS, (tmp_path / "b.msgpack").read_bytes())))
    vit_flax.save(tmp_path / "folder", MODEL, PARAMS, layout="flax")
    assert_same(vit_flax.load(tmp_path / "folder"))


def test_large_arrays_in_pieces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    monkeypatch.setattr(msgpack_file, "_PIECE_BYTES", 40)
    arrays = {"a": np.arange(30.0).reshape(5, 6), "b": np.ones(3)}
    (tmp_path / "flax").write_bytes(serialization.msgpack_serialize(arrays))
    msgpack_file.write_msgpack(str(tmp_path / "ours"), arrays, {})
    for name in ("flax", "ours"):
        found = read_checkpoint(tmp_path / name)
        np.testing.assert_array_equal(found.read("a"), arrays["a"])
    restored = serialization.msgpack_restore((tmp_path / "ours").read_bytes())
    np.testing.assert_array_equal(restored["a"], arrays["a"])


def array(shape, dtype, data) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


@pytest.mark.parametrize(
    "value",
    [
        {"a": msgpack.ExtType(7, b"x")},
        {"a": array((2,), "float32", b"1234")},
        {"a": array((1 << 62, 4), "float32", b"")},
        {"a": array((-1,), "float32", b"1234")},
        {"a": array((1,), "object", b"12345678")},
        {"a": array((1,), "O", b"12345678")},
        {"a": array((1,), ["float32"], b"1234")},
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 5}, "chunks": {"0": 3}}},
        {"a": {"__msgpack_chunked_array__": True}},
        {"a": [0] * 2000},
        {"a": 3},
        {},
    ],
)
def test_hostile_msgpack(tmp_path, value) -> None:
    (tmp_path / "a.msgpack").write_bytes(b"\x81\xa1x" + bytes(msgpack.packb(value) or b""))
    with pytest.raises(ConversionError) as error:
        read_checkpoint(tmp_path / "a.msgpack")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "data", [b"\x81", b"\xdf\xff\xff\xff\xff", b"\x81\xa1a\xdd\xff\xff\xff\xff", b"\x81\xa1a" * 5000]
)
def test_broken_msgpack(tmp_path, data) -> None:
    (tmp_path / "a.msgpack").write_bytes(data)
    with pytest.raises(ConversionError, match="broken msgpack"):
        read_checkpoint(tmp_path / "a.msgpack")


def test_a_few_float64_tensors_follow_the_others() -> None:
    tensors = {**vit_flax.to_state_dict(MODEL, PARAMS, "timm")}
    tensors["pos_embed"] = tensors["pos_embed"].astype(np.float64)
    given: dict[str, Any] = {
        "norm_eps": 1e-6,
        "activation": "gelu",
        "global_pool": "token",
        "num_heads": 2,
        "image_size": 32,
    }
    params = vit_flax.from_state_dict(tensors, **given)[1]
    assert params["pos_embed"].dtype == np.float32
    read = unwrap(vit_flax.convert.from_mapping(tensors))
    assert read.notes == ("in float64 among tensors in float32, and read in float32: pos_embed",)
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    assert unwrap(vit_flax.convert.from_mapping(wide)).notes == ()
    narrow = vit_flax.convert.in_float32(vit_flax.convert.from_mapping(wide))
    assert narrow.read("pos_embed").dtype == np.float32
    assert "float64" in narrow.notes[0]


def test_every_family_has_a_layout_of_its_own_parameters():
    for family in FAMILIES.values():
        assert own_layout(family()).config_class == family
