"""The commands on SigLIP 2's NaFlex, against transformers with its own image processor on the same files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vit_flax
from parity_tests.peers import import_transformers
from parity_tests.random_weights import randomise
from parity_tests.zero_shot_test import CONTEXT, LABELS, SIZES, WORDS
from vit_flax.cli.main import main
from vit_flax.parity.tolerances import FLOAT32_RELATIVE, FLOAT32_ROUNDING

transformers = import_transformers()
VISION = {**SIZES, "num_patches": 16, "patch_size": 8}
MOST = 20


def photos(folder: Any) -> list[str]:
    """Draws a wide, a tall and a small photograph."""
    drawn = np.random.default_rng(0)
    names = [str(folder / f"{i}.png") for i in range(3)]
    for name, size in zip(names, ((40, 91), (75, 33), (7, 9)), strict=True):
        Image.fromarray(drawn.integers(0, 256, (*size, 3), np.uint8)).save(name)
    return names


def save_tokenizer(folder: Any) -> None:
    """Trains and saves a small tokeniser of SigLIP 2's kind."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.train_from_iterator([" ".join(WORDS)] * 3, trainers.BpeTrainer(
        vocab_size=90, special_tokens=special, show_progress=False))  # fmt: skip
    model = json.loads(made.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = transformers.Siglip2Tokenizer(vocab=model["vocab"], merges=merges, model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Saves both towers with tokeniser and image processor; returns folder, model, processors and files."""
    folder = tmp_path_factory.mktemp("naflex")
    save_tokenizer(folder)
    text = {**SIZES, "vocab_size": 90, "max_position_embeddings": CONTEXT, "bos_token_id": 2, "eos_token_id": 1}
    text["pad_token_id"] = 0
    model = randomise(transformers.Siglip2Model(transformers.Siglip2Config(text_config=text, vision_config=VISION)))
    model.float().save_pretrained(folder)
    images = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=MOST)
    images.save_pretrained(folder)
    return folder, model, images, transformers.AutoTokenizer.from_pretrained(folder), photos(folder)


def read(images: Any, files: list[str]) -> Any:
    return images(images=[Image.open(file) for file in files], return_tensors="pt")


def test_zeroshot_says_what_transformers_does(towers, capsys):
    folder, model, images, tokenizer, files = towers
    arguments = [str(folder), *files, "--labels", *LABELS, "--template", "{}", "--json", "--batch-size", "2"]
    tokens = tokenizer(LABELS, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
    for most in ([], ["--max-num-patches", "9"]):
        assert main(["zeroshot", *arguments, *most]) == 0
        rows = json.loads(capsys.readouterr().out)
        images.max_num_patches = int(most[-1]) if most else MOST
        with torch.no_grad():
            expected = model(**read(images, files), **tokens).logits_per_image.sigmoid().numpy()
        for row, shares in zip(rows, expected, strict=True):
            told = {guess["label"]: guess["probability"] for guess in row["guesses"]}
            np.testing.assert_allclose([told[label] for label in LABELS], shares, rtol=0, atol=FLOAT32_ROUNDING)


def close(ours: np.ndarray, theirs: Any) -> None:
    theirs = theirs.numpy()
    assert np.linalg.norm(ours - theirs) <= FLOAT32_RELATIVE * np.linalg.norm(theirs)


def test_features_of_the_model_and_of_its_blocks(towers, tmp_path, capsys):
    folder, model, images, _, files = towers
    images.max_num_patches = MOST
    inputs = read(images, files)
    grids = inputs["spatial_shapes"].numpy()
    with torch.no_grad():
        out = model.vision_model(**inputs, output_hidden_states=True)
    found = {}
    for name, asked in {"pooled": (), "projected": ("--projected",), "tokens": ("--tokens",),
                        "blocks": ("--layers", "all")}.items():  # fmt: skip
        target = str(tmp_path / f"{name}.npz")
        assert main(["features", str(folder), *files, "-o", target, "--batch-size", "2", *asked]) == 0
        found[name] = dict(np.load(target))
    capsys.readouterr()
    close(found["pooled"]["features"], out.pooler_output)
    np.testing.assert_array_equal(found["projected"]["features"], found["pooled"]["features"])
    for arrays in (found["tokens"], found["blocks"]):
        np.testing.assert_array_equal(arrays["spatial_shapes"], grids)
        assert arrays["spatial_shapes"].dtype == np.int32
    for row, count in enumerate(grids.prod(1)):  # what is beyond is padding, whose values nobody reads
        close(found["tokens"]["features"][row, :count], out.last_hidden_state[row, :count])
        close(found["blocks"]["layer_0"][row, :count], out.hidden_states[1][row, :count])
    assert main(["features", str(folder), *files, "-o", str(tmp_path / "grid.npz"), "--layers", "0", "--grid"]) == 2
    assert "leave it out, 'spatial_shapes' has each image's rows and columns" in capsys.readouterr().err


def test_attention_is_of_the_images_own_grid(towers, tmp_path, capsys):
    folder, model, images, _, files = towers
    images.max_num_patches = MOST
    inputs = read(images, files[:1])
    rows, columns = inputs["spatial_shapes"][0].tolist()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model.vision_model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    count = rows * columns
    target = tmp_path / "maps.npz"
    assert main(["attention", str(folder), files[0], "-o", str(target)]) == 0
    capsys.readouterr()
    ours = np.load(target)
    close(ours["layer_0"], maps[0][0, :, :count, :count])
    for asked in ((), ("--layer", "0", "--head", "1")):
        picture = tmp_path / "map.png"
        assert main(["attention", str(folder), files[0], "-o", str(picture), "--json", *asked]) == 0
        shares = np.asarray(json.loads(capsys.readouterr().out)["attention"])
        assert shares.shape == (rows, columns)
        np.testing.assert_allclose(shares.sum(), 1, rtol=FLOAT32_ROUNDING)
        with Image.open(picture) as drawn:
            assert drawn.height >= 448
    np.testing.assert_allclose(shares, ours["layer_0"][1].mean(0).reshape(rows, columns), rtol=FLOAT32_RELATIVE)


def test_evaluate_reads_images_of_any_size(towers, tmp_path, capsys):
    folder, model, images, tokenizer, files = towers
    images.max_num_patches = MOST
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for file in files:
                turned = Image.open(file).rotate(90 * (name == "dog"), expand=True)
                turned.save(tmp_path / split / name / file.rpartition("/")[2])
    (tmp_path / "test" / "dog" / "broken.png").write_bytes(b"no image")
    data = ["--data", f"image_folder:{tmp_path}", "--batch-size", "4", "--max-bad-share", "0.5", "--json"]
    assert main(["evaluate", str(folder), *data, "--zeroshot", "--template", "the {}"]) == 0
    answer = json.loads(capsys.readouterr().out)
    shown = sorted(str(path) for path in (tmp_path / "test").rglob("[0-9].png"))
    tokens = tokenizer(["the cat", "the dog"], padding="max_length", max_length=CONTEXT, return_tensors="pt")
    with torch.no_grad():
        guessed = model(**read(images, shown), **tokens).logits_per_image.argmax(1).numpy()
    assert answer["count"] == len(shown) == 6
    assert len(answer["bad"]) == 1
    assert answer["top1"] == (guessed == [0, 0, 0, 1, 1, 1]).mean()
    assert main(["evaluate", str(folder), *data, "--knn", "--k", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["knn"]["top1"] == {"1": 1.0}


def test_predict_names_the_classes_that_transformers_does(towers, tmp_path, capsys):
    _, _, images, _, files = towers
    images.max_num_patches = MOST
    config = transformers.Siglip2Config(
        vision_config={**VISION, "vision_use_head": False}, text_config=SIZES, id2label={0: "cat", 1: "dog", 2: "car"}
    )
    model = randomise(transformers.Siglip2ForImageClassification(config)).float()
    model.save_pretrained(tmp_path)
    images.save_pretrained(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert main(["predict", str(tmp_path), *files, str(tmp_path / "broken.png"), "--json", "--batch-size", "4"]) == 1
    rows = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        expected = model(**read(images, files)).logits.softmax(-1).numpy()
    assert "error" in rows[-1]
    for row, shares in zip(rows[:-1], expected, strict=True):
        told = {guess["name"]: guess["probability"] for guess in row["guesses"]}
        np.testing.assert_allclose(
            [told[name] for name in ("cat", "dog", "car")], shares, rtol=0, atol=FLOAT32_ROUNDING
        )


def test_a_converted_folder_is_prepared_for_as_before(towers, tmp_path, capsys):
    folder, _, images, _, files = towers
    images.max_num_patches = MOST
    assert main(["convert", str(folder), str(tmp_path / "new"), "--tower", "image"]) == 0
    capsys.readouterr()
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path / "new")
    for name, array in read(images, files).items():
        assert torch.equal(read(again, files)[name], array), name
    assert vit_flax.read_preprocessing(tmp_path / "new") == vit_flax.read_preprocessing(folder)


def test_what_does_not_fit_is_told(towers, tmp_path, capsys):
    folder, _, _, _, files = towers
    target = ["-o", str(tmp_path / "x.npz")]

    def refused(*more: str) -> str:
        assert main(["features", str(folder), *files, *target, *more]) == 2
        return capsys.readouterr().err

    told = json.loads((folder / "preprocessor_config.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**told, "patch_size": 16}))
    assert "makes patches of 16x16, the model takes 8x8" in refused("--preprocessing", str(other))
    other.write_text(json.dumps({**told, "do_resize": False}))
    assert "do_resize=False leaves images of which only some divide" in refused("--preprocessing", str(other))
    other.write_text(json.dumps({**told, "max_num_patches": "many"}))
    assert "max_num_patches must be an integer or None, got 'many'" in refused("--preprocessing", str(other))
    assert "max_num_patches needs crop_mode='patches', and is 1 or more with it, got 0" in refused(
        "--max-num-patches", "0"
    )
    # images of one size may be asked for, and these have no more patches than the model's table
    assert main(["features", str(folder), *files, *target, "--crop-mode", "squash", "--tokens"]) == 0
    capsys.readouterr()
    assert np.load(tmp_path / "x.npz")["features"].shape == (3, 16, 24)
    fixed = vit_flax.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    with pytest.raises(ValueError, match="into patches, which the model does not take"):
        vit_flax.Predictor(fixed, {}, transform=vit_flax.read_preprocessing(folder))


def test_without_a_processor_it_is_what_the_models_table_is_for(towers, tmp_path, capsys):
    _, model, _, _, files = towers
    bare = tmp_path / "bare"
    model.save_pretrained(bare)
    assert main(["features", str(bare), *files, "-o", str(tmp_path / "x.npz")]) == 0
    assert "nothing tells how images are normalised" in capsys.readouterr().err
    usual = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    with torch.no_grad():
        close(np.load(tmp_path / "x.npz")["features"], model.vision_model(**read(usual, files)).pooler_output)
