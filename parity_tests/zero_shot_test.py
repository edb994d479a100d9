"""`vit-flax zeroshot` and zero-shot functions against transformers on the same pixels, with tokenisers trained here."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import vit_flax
from parity_tests.agreement import assert_same_tensors
from parity_tests.peers import import_transformers
from parity_tests.random_weights import randomise
from vit_flax.cli.main import main
from vit_flax.parity.tolerances import FLOAT32_ROUNDING, FLOAT64_ROUNDING
from vit_flax.zero_shot import ZeroShot, embed_texts

transformers = import_transformers()

WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "red",
    "blue",
    "cat",
    "dog",
    "car",
    "sky",
    "very",
    "large",
    "bird",
    "tree",
    "on",
    "in",
    "it",
]
LABELS = ["cat", "red car", "a very large bird, in the sky", "Dog & café"]
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3}
CONTEXT = 12


def clip_tokenizer(folder: Any) -> Any:
    """Trains and saves a small tokeniser of CLIP's kind: bytes in pairs, words that end in </w>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>",
                                  special_tokens=[], show_progress=False)  # fmt: skip
    made.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    model = json.loads(made.to_str())["model"]
    vocab = list(model["vocab"])
    vocab += [letter + "</w>" for letter in alphabet if letter + "</w>" not in model["vocab"]]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    tokenizer = transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(vocab)}, merges=merges)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def siglip_tokenizer(folder: Any, hides_padding: bool = False) -> Any:
    """Trains and saves a small tokeniser of SigLIP's kind, with sentencepiece."""
    import sentencepiece

    model = folder / "trained"
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]), model_prefix=str(model),
        vocab_size=60, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    names = {"model_input_names": ["input_ids", "attention_mask"] if hides_padding else ["input_ids"]}
    tokenizer = transformers.SiglipTokenizer(f"{model}.model", model_max_length=CONTEXT, **names)
    tokenizer.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def word_tokenizer(folder: Any, end: int) -> Any:
    """Saves a tokeniser of whole words whose texts end with the token `end`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", end)]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=CONTEXT, **named)
    tokenizer.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def build(case: str, folder: Any) -> tuple[Any, Any]:
    """Saves a model with its tokeniser and image processor, and returns model and processor."""
    kind = {"clip": "CLIP", "metaclip_2": "MetaClip2", "siglip": "Siglip", "siglip2": "Siglip"}[case]
    if case == "clip":
        tokenizer = clip_tokenizer(folder)
    else:
        tokenizer = word_tokenizer(folder, 2) if case == "metaclip_2" else siglip_tokenizer(folder, case == "siglip2")
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    text |= {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    more = {} if "siglip" in case else {"projection_dim": 16}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**text, **more}, vision_config={**SIZES, "image_size": 16, "patch_size": 8}, **more
    )
    model = randomise(getattr(transformers, f"{kind}Model")(config)).float()
    model.save_pretrained(folder)
    size: dict[str, Any] = {"size": {"height": 16, "width": 16}}
    images = transformers.SiglipImageProcessor(**size)
    if "siglip" not in case:
        images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size["size"])
    images.save_pretrained(folder)
    return model, (images, tokenizer)


def photos(folder: Any) -> list[str]:
    drawn = np.random.default_rng(0)
    names = [str(folder / f"{i}.png") for i in range(2)]
    for name, size in zip(names, ((20, 31), (40, 17)), strict=True):
        Image.fromarray(drawn.integers(0, 256, (*size, 3), np.uint8)).save(name)
    return names


def theirs_on(model: Any, processors: Any, files: list[str], texts: list[str]) -> np.ndarray:
    images, tokenizer = processors
    pixels = images(images=[Image.open(file) for file in files], return_tensors="pt")
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
    with torch.no_grad():
        logits = model(**pixels, **tokens).logits_per_image
    return (logits.sigmoid() if hasattr(model, "logit_bias") else logits.softmax(-1)).numpy()


@pytest.mark.parametrize("case", ["clip", "metaclip_2", "siglip", "siglip2"])
def test_the_command_says_what_transformers_does(case, tmp_path, capsys):
    model, processors = build(case, tmp_path)
    files = photos(tmp_path)
    arguments = ["zeroshot", str(tmp_path), *files, "--labels", *LABELS, "--template", "a photo of {}, it", "--json"]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    expected = theirs_on(model, processors, files, [f"a photo of {label}, it" for label in LABELS])
    for row, shares in zip(rows, expected, strict=True):
        told = {guess["label"]: guess["probability"] for guess in row["guesses"]}
        assert list(told.values()) == sorted(told.values(), reverse=True)
        np.testing.assert_allclose([told[label] for label in LABELS], shares, rtol=0, atol=FLOAT32_ROUNDING)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, *build("clip", folder), photos(folder)


def test_texts_longer_than_the_context_and_empty_ones_are_read_as_their_owner_reads_them(clip):
    folder, theirs, (_, tokenizer), _ = clip
    model, params = vit_flax.load(folder)
    ours = vit_flax.read_tokenizer(folder, model.config)
    texts = ["a very large bird on the tree by the sky and some cat " * 3, "", "  Dog &  café\n", "ß 東京 🐈"]
    told = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT)
    found = ours(texts)
    np.testing.assert_array_equal(found.numbers, told["input_ids"])
    np.testing.assert_array_equal(found.mask, told["attention_mask"])
    assert (found.numbers[0] == tokenizer.eos_token_id).sum() == 1  # cut, and still ended
    with torch.no_grad():
        expected = theirs.get_text_features(**tokenizer(texts, padding=True, truncation=True, max_length=CONTEXT,
                                                        return_tensors="pt")).pooler_output  # fmt: skip
    expected = expected / expected.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(
        embed_texts(model, params, texts, ours, batch_size=3), expected, rtol=0, atol=FLOAT32_ROUNDING
    )


def test_templates_are_averaged_and_ten_thousand_labels_are_read(clip):
    folder, _, _, _ = clip
    model, params = vit_flax.load(folder)
    tokenizer = vit_flax.read_tokenizer(folder, model.config)
    templates = ["a photo of the {}", "{}, on a tree {{}"]
    found = vit_flax.zero_shot_classifier(model, params, LABELS, templates, tokenizer=tokenizer)
    single = [embed_texts(model, params, [t.replace("{}", name) for name in LABELS], tokenizer) for t in templates]
    mean = (single[0] + single[1]) / 2
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=0, atol=FLOAT32_ROUNDING)
    names = [f"cat {i} {i % 7}" for i in range(10_000)]
    many = vit_flax.zero_shot_classifier(model, params, names, ["{}"], tokenizer=tokenizer)
    assert many.shape == (10_000, 16)
    np.testing.assert_allclose(many[[7, 9_999]], embed_texts(model, params, [names[7], names[9_999]], tokenizer),
                               rtol=0, atol=FLOAT32_ROUNDING)  # fmt: skip


def test_evaluate_counts_by_the_names_of_the_folders(clip, tmp_path, capsys):
    folder, theirs, processors, files = clip
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for i, file in enumerate(files):
            Image.open(file).rotate(90 * (name == "dog")).save(tmp_path / "test" / name / f"{i}.png")
    arguments = ["evaluate", str(folder), "--zeroshot", "--data", f"image_folder:{tmp_path}", "--json"]
    assert main([*arguments, "--template", "the {}", "--batch-size", "4"]) == 0
    answer = json.loads(capsys.readouterr().out)
    shown = sorted(str(path) for path in (tmp_path / "test").rglob("*.png"))
    right = theirs_on(theirs, processors, shown, ["the cat", "the dog"]).argmax(1) == [0, 0, 1, 1]
    assert answer["count"] == 4
    assert answer["top1"] == right.mean()
    assert {row["name"]: row["correct"] for row in answer["classes"]} == {
        "cat": right[:2].sum(),
        "dog": right[2:].sum(),
    }
    names = tmp_path / "names.txt"
    names.write_text("red car\nblue sky\n")
    assert main([*arguments, "--labels", str(names), "--template", "the {}", "--batch-size", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    right = theirs_on(theirs, processors, shown, ["the red car", "the blue sky"]).argmax(1) == [0, 0, 1, 1]
    assert found["top1"] == right.mean()
    names.write_text("red car\n")
    assert main([*arguments, "--labels", str(names)]) == 2
    assert "1 names for the data's 2 classes" in capsys.readouterr().err
    assert main([*arguments[:2], *arguments[3:], "--template", "{}"]) == 2
    assert "--template needs --zeroshot" in capsys.readouterr().err


def refused(capsys: Any, *arguments: str) -> str:
    assert main(["zeroshot", *arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(("...", "note:", "[transformers]"))]
    assert not out
    assert len(lines) == 1, err
    return lines[0]


def test_mistakes_are_told_in_one_line_whose_advice_works(clip, tmp_path, capsys):
    folder, _, _, files = clip
    model, params = vit_flax.load(folder)
    bare = tmp_path / "bare"
    vit_flax.save(bare, model, params, "huggingface_clip", vit_flax.read_preprocessing(folder))
    line = refused(capsys, str(bare), files[0], "--labels", "cat")
    assert "no tokeniser lies beside the weights: pass --tokenizer FOLDER" in line
    assert main(["zeroshot", str(bare), files[0], "--labels", "cat", "--tokenizer", str(folder)]) == 0
    capsys.readouterr()
    other = tmp_path / "other"
    other.mkdir()
    word_tokenizer(other, 2)
    line = refused(capsys, str(bare), files[0], "--labels", "cat", "--tokenizer", str(other))
    assert "it is another model's tokeniser" in line
    assert "no such file or folder" in refused(capsys, str(bare), files[0], "--labels", "cat", "--tokenizer", "nothing")
    assert "holds no tokeniser" in refused(capsys, str(bare), files[0], "--labels", "cat", "--tokenizer", str(tmp_path))
    (other / "tokenizer.json").write_text("{broken")
    assert "cannot be read" in refused(capsys, str(bare), files[0], "--labels", "cat", "--tokenizer", str(other))
    assert "'a cat' has no {} where a name goes" in refused(capsys, str(folder), files[0], "--labels", "x",
                                                            "--template", "a cat")  # fmt: skip
    assert "'cat' is there twice" in refused(capsys, str(folder), files[0], "--labels", "cat", "cat")
    broken = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert "text 0" in refused(capsys, str(folder), files[0], "--labels", broken)
    (tmp_path / "names.txt").write_bytes(b"caf\xe9\n")
    assert "is not in UTF-8: byte 3" in refused(
        capsys, str(folder), files[0], "--labels-file", str(tmp_path / "names.txt")
    )
    (tmp_path / "names.txt").write_text("\n\n")
    assert "holds no labels" in refused(capsys, str(folder), files[0], "--labels-file", str(tmp_path / "names.txt"))
    image = tmp_path / "image"
    tower, alone = vit_flax.load(folder, tower="image")
    vit_flax.save(image, tower, alone, "huggingface_clip")
    assert "has no text tower" in refused(capsys, str(image), files[0], "--labels", "cat")
    with pytest.raises(ValueError, match=r"text 1 is 3, no text"):
        vit_flax.read_tokenizer(folder, model.config)(["cat", 3])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="give a list of texts"):
        vit_flax.read_tokenizer(folder, model.config)("cat")


@pytest.mark.parametrize("case", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_a_converted_folder_is_whole_for_transformers_and_for_us(case, tmp_path, capsys):
    source, target, file = (tmp_path / name for name in ("source", "target", "file.safetensors"))
    source.mkdir()
    model, (images, tokenizer) = build(case, source)
    files = photos(tmp_path)
    assert main(["convert", str(source), str(target), "--layout", f"huggingface_{case}_with_text"]) == 0
    assert "tokeniser" not in capsys.readouterr().err
    processor = transformers.AutoProcessor.from_pretrained(target)
    again = transformers.AutoModel.from_pretrained(target)
    read = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
    inputs = processor(text=LABELS, images=[Image.open(name) for name in files], **read)
    expected = {**images(images=[Image.open(name) for name in files], return_tensors="pt"), **tokenizer(LABELS, **read)}
    for name, array in expected.items():
        assert torch.equal(inputs[name], array), name
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits_per_image, model(**expected).logits_per_image)
    assert main(["zeroshot", str(target), files[0], "--labels", *LABELS]) == 0
    assert main(["push", str(target), "me/model", "--card"]) == 0
    assert "vit-flax zeroshot hf://me/model photo.jpg --labels cat dog" in capsys.readouterr().out
    # a single file has no place for a tokeniser, and says where it is
    assert main(["convert", str(source), str(file)]) == 0
    assert f"the tokeniser stays in {source}: a folder in place of {file} gets a copy" in capsys.readouterr().err
    assert main(["zeroshot", str(file), files[0], "--labels", "cat", "--tokenizer", str(source)]) == 0
    assert main(["convert", str(file), str(tmp_path / "again")]) == 0
    assert "no tokeniser lies beside the weights: --tokenizer FOLDER copies one" in capsys.readouterr().err
    assert main(["convert", str(file), str(tmp_path / "again"), "--tokenizer", str(source)]) == 0
    assert main(["zeroshot", str(tmp_path / "again"), files[0], "--labels", "cat"]) == 0
    capsys.readouterr()
    for wrong, said in ((["image", "--tower", "image"], "both towers are: leave it out"),
                        (["x.npz"], "a folder is written (no suffix, or .orbax): leave it out")):  # fmt: skip
        arguments = [str(source), str(tmp_path / wrong[0]), *wrong[1:], "--tokenizer", str(source)]
        assert main(["convert", *arguments]) == 2
        assert f"--tokenizer is copied where {said}" in capsys.readouterr().err
    assert main(["convert", str(file), str(tmp_path / "none"), "--tokenizer", str(tmp_path)]) == 2
    assert "holds no tokeniser" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


OWNERS = {"siglip2": "siglip", "metaclip_2": "clip"}


@pytest.mark.parametrize(
    ("case", "files"),
    [
        ("siglip2", ("a.orbax", "b.npz", "c.orbax")),
        pytest.param("metaclip_2", ("a.orbax", "b", "c.msgpack", "d.safetensors", "e.orbax"), marks=pytest.mark.slow),
    ],
)
def test_this_librarys_own_parameters_are_written_and_read(case, files, tmp_path, capsys):
    """From one kind of file to the next; the tokeniser goes along, with what its owner says of padding."""
    source = tmp_path / "source"
    source.mkdir()
    build(case, source)
    question = [photos(tmp_path)[0], "--labels", *LABELS[:3], "--json"]  # of different lengths: padding is told apart
    places = [source, *(tmp_path / name for name in files)]
    told = str(places[1] / "config.json")
    for old, new in itertools.pairwise(places):
        layout = [] if new.suffix == ".orbax" else ["--layout", "flax_with_text"]
        given = ["--config", told] if old.suffix in (".npz", ".msgpack") else []
        lost = old.suffix not in ("", ".orbax") and new.suffix in ("", ".orbax")
        copied = ["--tokenizer", str(places[1])] if lost else []
        assert main(["convert", str(old), str(new), *layout, *given, *copied]) == 0
    capsys.readouterr()
    answers = []
    for place in (source, places[-1]):
        assert main(["zeroshot", str(place), *question]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    tower, _ = vit_flax.load(places[-1], tower="image")
    assert tower.config == vit_flax.load(source)[0].config.image
    assert (
        main(["convert", str(places[-1]), str(tmp_path / "back"), "--layout", f"huggingface_{OWNERS[case]}_with_text"])
        == 0
    )
    assert_same_tensors(*(load_file(place / "model.safetensors") for place in (tmp_path / "back", source)))


TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3}
BERTS = {"ChineseCLIP": {"vocab_size": 40}, "AltCLIP": {"vocab_size": 40, "project_dim": 16, "pad_token_id": 0}}


@pytest.mark.parametrize("kind", BERTS)
def test_text_towers_of_other_kinds_are_refused_by_name(kind, clip, tmp_path, capsys):
    _, _, _, files = clip
    config = getattr(transformers, f"{kind}Config")(
        text_config={**TOWER, **BERTS[kind]}, vision_config={**TOWER, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    capsys.readouterr()
    line = refused(capsys, str(tmp_path), files[0], "--labels", "cat")
    assert "its text tower is a BERT or one of its relatives (text_model." in line
    assert "load(..., tower='image') and vit-flax features read its image tower" in line
    # as they do
    assert vit_flax.load(tmp_path, tower="image")[0].config.embed_dim == 24
    assert vit_flax.load(tmp_path)[0].config.embed_dim == 24
    assert (
        main(["features", str(tmp_path), files[0], "-o", str(tmp_path / "x.npz"), "--mean", "0.5", "--std", "0.5"]) == 0
    )


def test_cocas_text_tower_is_refused_by_name(clip):
    folder = clip[0]
    model, params = vit_flax.load(folder)
    tensors = {**vit_flax.to_state_dict(model, params, "open_clip_with_text"), "cls_emb": np.zeros(24)}
    told: dict[str, Any] = {"num_heads": 3, "text_num_heads": 3, "image_size": 16}
    with pytest.raises(vit_flax.ConversionError, match=r"CoCa's, with a token of its own .*tower='image'. reads"):
        vit_flax.from_state_dict(tensors, **told)


def test_recall_is_what_counting_gives():
    drawn = np.random.default_rng(0)
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in drawn.normal(size=(2, 9, 4)))
    near = images @ texts.T
    found = vit_flax.retrieval_recall(images, texts, ranks=(1, 3))
    for rank in (1, 3):
        assert found[f"image_to_text@{rank}"] == np.mean([i in np.argsort(-near[i])[:rank] for i in range(9)])
        assert found[f"text_to_image@{rank}"] == np.mean([i in np.argsort(-near[:, i])[:rank] for i in range(9)])
    # several texts an image: the nearest of its own counts
    several = vit_flax.retrieval_recall(images[:3], texts, np.arange(9) // 3, ranks=(2,))
    assert several["image_to_text@2"] == np.mean([{3 * i, 3 * i + 1, 3 * i + 2} & {*np.argsort(-near[i])[:2]} != set()
                                                  for i in range(3)])  # fmt: skip
    # a model that says the same of everything finds nothing
    assert vit_flax.retrieval_recall(np.ones((4, 2)), np.ones((4, 2)))["image_to_text@1"] == 0
    with pytest.raises(ValueError, match="4 images and 3 texts"):
        vit_flax.retrieval_recall(np.ones((4, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="every image needs a text"):
        vit_flax.retrieval_recall(np.ones((2, 2)), np.ones((2, 2)), np.zeros(2, int))


def test_a_sigmoid_model_takes_each_label_by_itself():
    embeddings, classifier = np.asarray([[2.0, 0.0]]), np.asarray([[1.0, 0.0], [0.0, 1.0]])
    sigmoid = ZeroShot(("a", "b"), classifier, 10.0, -4.0).probabilities(embeddings)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp([[-6.0, 4.0]])), rtol=FLOAT64_ROUNDING)
    softmax = ZeroShot(("a", "b"), classifier, 10.0, None).probabilities(embeddings)
    np.testing.assert_allclose(softmax.sum(), 1, rtol=FLOAT64_ROUNDING)
