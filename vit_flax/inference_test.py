from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_flax.array_writer import ArrayWriter
from vit_flax.attention_weights import AttentionMaps, attention_maps, attention_rollout
from vit_flax.config import ViTConfig
from vit_flax.image_sizes import at_image_size
from vit_flax.inference import Predictor
from vit_flax.models import VisionTransformer, build_model
from vit_flax.models.intermediates import Intermediates
from vit_flax.models.precision import compiled_for
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_RELATIVE, FLOAT32_ROUNDING
from vit_flax.preprocessing.decode import BadImageError
from vit_flax.preprocessing.evaluation import Preprocessing

CONFIG = ViTConfig(image_size=(16, 24), patch_size=(8, 8), embed_dim=16, depth=1, num_heads=2, num_classes=5)


@pytest.fixture(scope="module")
def model() -> tuple[VisionTransformer, Any]:
    built = build_model(CONFIG)
    shapes = jax.eval_shape(built.init, jax.random.key(0), jnp.zeros((1, 16, 24, 3)))["params"]
    rng = np.random.default_rng(0)
    return built, jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


IMAGES = np.random.default_rng(0).normal(size=(9, 16, 24, 3)).astype(np.float32)


def test_any_number_of_images_with_one_compilation(model: tuple[VisionTransformer, Any]) -> None:
    predictor = Predictor(*model, batch_size=4)
    expected = np.asarray(model[0].apply({"params": model[1]}, IMAGES))
    tokens = np.asarray(model[0].apply({"params": model[1]}, IMAGES, method="features"))
    for count in range(10):
        logits = predictor.logits(IMAGES[:count])
        assert logits.shape == (count, 5)
        np.testing.assert_allclose(logits, expected[:count], rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
        np.testing.assert_allclose(
            predictor.features(iter(IMAGES[:count])), tokens[:count], rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE
        )
        assert predictor.embeddings(list(IMAGES[:count])).shape == (count, 16)
    compiled: Any = predictor._methods
    assert [method._cache_size() for method in compiled.values()] == [1, 1, 1]
    np.testing.assert_allclose(predictor.embeddings(IMAGES), tokens[:, 0], rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)


def test_a_batch_of_its_size_is_exactly_the_model(model: tuple[VisionTransformer, Any]) -> None:
    expected = jax.jit(lambda images: model[0].apply({"params": model[1]}, images))(IMAGES)
    np.testing.assert_array_equal(Predictor(*model, batch_size=9).logits(IMAGES), expected)


def test_kernels_kept_in_bfloat16_change_nothing(model: tuple[VisionTransformer, Any]) -> None:
    predictor = Predictor(*model, batch_size=9, dtype=jnp.bfloat16)
    kinds = {(path[-1].key == "kernel", str(leaf.dtype)) for path, leaf in jax.tree.leaves_with_path(predictor.params)}
    assert kinds == {(True, "bfloat16"), (False, "float32")}
    half = build_model(CONFIG, dtype=jnp.bfloat16)
    with compiled_for(jax.devices()[0].platform):
        expected = jax.jit(lambda images: half.apply({"params": model[1]}, images))(IMAGES)
    np.testing.assert_array_equal(predictor.logits(IMAGES), expected)


def test_files_and_bytes_are_transformed_in_their_order(model: tuple[VisionTransformer, Any], tmp_path: Path) -> None:
    transform = Preprocessing(image_size=(16, 24), crop_pct=0.9)
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 256, (20 + n, 30 - n, 3), np.uint8) for n in range(7)]
    paths = [tmp_path / f"{n}.png" for n in range(7)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    predictor = Predictor(*model, batch_size=2, transform=transform, threads=3)
    expected = predictor.logits(np.stack([transform(array) for array in arrays]))
    np.testing.assert_array_equal(predictor.logits(paths), expected)
    np.testing.assert_array_equal(predictor.logits(map(str, paths)), expected)
    np.testing.assert_array_equal(predictor.logits(path.read_bytes() for path in paths), expected)
    np.testing.assert_array_equal(predictor.logits(arrays), expected)
    paths[3].write_bytes(b"nothing")
    with pytest.raises(BadImageError, match=r"3.png: not a readable image"):
        predictor.logits(paths)


def test_it_streams(model: tuple[VisionTransformer, Any]) -> None:
    seen = []

    def endless() -> Any:
        while True:
            seen.append(len(seen))
            yield IMAGES[len(seen) % 9]

    stream = Predictor(*model, batch_size=2).stream("logits", endless())
    assert next(stream).shape == (2, 5)
    assert len(seen) < 20
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_what_does_not_fit_is_refused(model: tuple[VisionTransformer, Any]) -> None:
    predictor = Predictor(*model, batch_size=2)
    for images, said in (
        (IMAGES[:, :8], r"image 0: \(8, 24, 3\) of float32, the model needs \(16, 24, 3\)"),
        ([np.zeros((16, 24, 3), np.uint8)], "image 0: not normalised yet"),
        (IMAGES[0], "images must be"),
        ("a.png", "give a list of images"),
    ):
        with pytest.raises(ValueError, match=said):
            predictor.logits(images)
    with pytest.raises(ValueError, match=r"the transform gives images of \(8, 8, 3\)"):
        Predictor(*model, transform=Preprocessing(image_size=(8, 8)))
    with pytest.raises(ValueError, match="batch_size 0"):
        Predictor(*model, batch_size=0)


def test_images_of_other_sizes_are_those_of_a_model_of_that_size(model: tuple[VisionTransformer, Any]) -> None:
    predictor = Predictor(*model, batch_size=2, resample="bicubic_antialias")
    rng = np.random.default_rng(0)
    sizes = [(16, 24), (24, 16), (24, 16), (24, 16), (32, 32), (16, 24)]
    images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in sizes]
    found = predictor.logits(images)
    for image, logits in zip(images, found, strict=True):
        sized, params = at_image_size(*model, image.shape[:2])
        expected = np.asarray(sized.apply({"params": params}, image[None]))[0]
        np.testing.assert_allclose(logits, expected, rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
    with pytest.raises(ValueError, match="different numbers of tokens"):
        predictor.features([images[0], images[4]])
    with pytest.raises(ValueError, match="not divisible"):
        predictor.logits([images[0][:, :20]])
    with pytest.raises(ValueError, match=r"the model needs \(16, 24, 3\) floats"):
        Predictor(*model, batch_size=2).logits(images)


def test_attention_rollout(model: tuple[VisionTransformer, Any]) -> None:
    maps = attention_rollout(*model, IMAGES[:3])
    assert maps.shape == (3, 2, 3)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=FLOAT32_ROUNDING)
    even = jax.tree.map(jnp.zeros_like, model[1])  # no query differs from another
    np.testing.assert_allclose(attention_rollout(model[0], even, IMAGES[:1]), 1 / 6, rtol=FLOAT32_ROUNDING)
    averaged = build_model(CONFIG.replace(class_token=False, global_pool="avg"))
    params = jax.jit(averaged.init)(jax.random.key(0), IMAGES[:1])["params"]
    assert attention_rollout(averaged, params, IMAGES[:1]).shape == (1, 2, 3)
    differential = build_model(CONFIG.replace(block="diff"))
    params = jax.jit(differential.init)(jax.random.key(0), IMAGES[:1])["params"]
    with pytest.raises(ValueError, match="differences"):
        attention_rollout(differential, params, IMAGES[:1])
    maps = attention_maps(differential, params, IMAGES[:1], layers=[-1])
    assert maps[CONFIG.depth - 1].shape == (1, CONFIG.num_heads, 7, 7)
    found = Predictor(*model, batch_size=2).attention(IMAGES[:3], AttentionMaps((-1,), head=-1))
    assert [*found] == ["layer_0"]
    whole = attention_maps(*model, IMAGES[:3])[0]
    np.testing.assert_allclose(found["layer_0"], whole[:, -1:], rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
    with pytest.raises(ValueError, match="no block 9"):
        attention_maps(differential, params, IMAGES[:1], layers=[9])


def test_intermediates_come_by_layer_in_memory_and_on_the_disk(tmp_path: Path) -> None:
    config = CONFIG.replace(depth=3, reg_tokens=1, num_classes=0)
    built = build_model(config)
    shapes = jax.eval_shape(built.init, jax.random.key(0), jnp.zeros((1, 16, 24, 3)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    _, expected = built.apply({"params": params}, IMAGES, [0, 2], True, norm=True, method="forward_intermediates")
    predictor = Predictor(built, params, batch_size=4)
    asked = Intermediates((-1, 0), return_prefix_tokens=True, norm=True)
    found = predictor.intermediates(IMAGES, asked)
    assert list(found) == ["layer_0", "layer_0_prefix", "layer_2", "layer_2_prefix"]
    for mine, other in zip(found.values(), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
    assert predictor.intermediates(IMAGES[:0], asked)["layer_2"].shape == (0, 2, 3, 16)
    images: list[Any] = [*IMAGES]
    images[5:5] = [b"nothing"]  # cannot be read
    bad: dict[int, str] = {}
    predictor = Predictor(built, params, batch_size=4, transform=Preprocessing(image_size=(16, 24)))
    with ArrayWriter(tmp_path / "out") as writer:
        predictor.write(writer, asked, images, bad)
    assert list(bad) == [5]
    for name, array in found.items():
        np.testing.assert_allclose(
            np.load(tmp_path / "out" / f"{name}.npy"), array, rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING
        )
    with pytest.raises(ValueError, match="no block 3: the model has 3"):
        predictor.intermediates(IMAGES, Intermediates([3]))
    with pytest.raises(ValueError, match="channels last"):
        Intermediates((0,), output_fmt="NCHW")
