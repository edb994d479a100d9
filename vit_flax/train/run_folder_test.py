"""A training run's folder, its checkpoints and Orbax's trees as the source of every command and function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import vit_flax
from vit_flax.convert import ConversionError, read_checkpoint
from vit_flax.models.shapes import expected_shapes
from vit_flax.train.checkpoints import Checkpoints
from vit_flax.train.config import DataConfig
from vit_flax.train.data.prepared import preprocessing_of

SIZES = {"depth": 1, "embed_dim": 16, "num_heads": 2, "image_size": 32, "num_classes": 3}
MODEL = vit_flax.create_model("vit_tiny_patch16_224", **SIZES)


def random_params(seed: int):
    rng = np.random.default_rng(seed)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in expected_shapes(MODEL).items()}
    return unflatten_dict(flat, sep="/")


PARAMS, AVERAGE = random_params(0), random_params(1)


def assert_same(loaded, params) -> None:
    assert loaded[0].config == MODEL.config
    found, expected = flatten_dict(loaded[1], sep="/"), flatten_dict(params, sep="/")
    assert set(found) == set(expected)
    assert all(np.array_equal(np.asarray(found[path]), np.asarray(leaf)) for path, leaf in expected.items())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder / "checkpoints")
    moments = {"mu": PARAMS, "nu": PARAMS}
    for step, params in ((1, AVERAGE), (2, PARAMS)):
        state = jax.tree.map(jnp.asarray, {"params": params, "opt_state": moments, "step": np.zeros(())})
        checkpoints.save(step, state, {"config": {"model": MODEL.config.to_dict()}})
    checkpoints.close()
    return folder


def test_checkpoints_of_a_run(run) -> None:
    for place in (run, run / "checkpoints", run / "checkpoints" / "00000002"):
        assert_same(vit_flax.load(place), PARAMS)
    assert_same(vit_flax.load(run / "checkpoints" / "00000001"), AVERAGE)
    assert set(read_checkpoint(run).skipped.values()) == {"state of training"}


def test_checkpoints_of_a_run_tell_how_images_are_prepared(tmp_path) -> None:
    data = DataConfig(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.8, interpolation="bilinear", exif=True)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    told = {"config": {"model": MODEL.config.to_dict(), "data": dataclasses.asdict(data)}}
    checkpoints.save(1, jax.tree.map(jnp.asarray, {"params": PARAMS, "step": np.zeros(())}), told)
    checkpoints.close()
    value = preprocessing_of(data, (32, 32), 3)
    places = [tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "00000001"]
    assert [vit_flax.read_preprocessing(place) for place in places] == [value] * 3
    named = value.replace(class_names=("a", "b", "c"))  # of the same run's export
    vit_flax.save(tmp_path / "best", MODEL, PARAMS, preprocessing=named)
    assert vit_flax.read_preprocessing(tmp_path / "checkpoints") == named


def test_one_that_was_not_finished_is_passed_over(run, tmp_path) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "00000002" / "manifest.json").unlink()
    assert_same(vit_flax.load(tmp_path / "run"), AVERAGE)


def test_parameters_and_their_average(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = jax.tree.map(jnp.asarray, {"params": PARAMS, "ema": AVERAGE})
    checkpoints.save(1, state, {"config": {"model": MODEL.config.to_dict()}})
    checkpoints.close()
    with pytest.raises(ConversionError, match=r"several sets of weights \((params, ema|ema, params)\)"):
        vit_flax.load(tmp_path)
    assert_same(vit_flax.load(tmp_path, entry="ema"), AVERAGE)
    assert_same(vit_flax.load(tmp_path, entry="params"), PARAMS)


def test_the_weights_that_a_run_exported_come_first(run, tmp_path) -> None:
    vit_flax.save(tmp_path / "best", MODEL, PARAMS)
    vit_flax.save(tmp_path / "final", MODEL, AVERAGE)
    assert_same(vit_flax.load(tmp_path), PARAMS)
    assert read_checkpoint(tmp_path).notes == ("took the run's best/; its last weights are in final/",)
    assert_same(vit_flax.load(tmp_path / "final"), AVERAGE)


def test_a_tree_that_orbax_wrote(tmp_path) -> None:
    import orbax.checkpoint as ocp

    writer = ocp.StandardCheckpointer()
    writer.save((tmp_path / "tree").absolute(), {"params": jax.tree.map(jnp.asarray, PARAMS)})
    writer.wait_until_finished()
    writer.close()
    assert_same(vit_flax.load(tmp_path / "tree", config=MODEL.config), PARAMS)


def test_a_damaged_tree(run, tmp_path) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    for table in (tmp_path / "run").rglob("_METADATA"):
        table.write_text("{")
    with pytest.raises(ConversionError) as error:
        read_checkpoint(tmp_path / "run")
    assert len(str(error.value).splitlines()) == 1
