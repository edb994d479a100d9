"""Drawn shapes with captions, made here: what a model of images and texts can learn in minutes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from vit_flax.preprocessing.decode import Decoding
from vit_flax.train.config import DataConfig
from vit_flax.train.data.source import SPLIT_SEED, Example, check_split

PAIRS = True
SIDE = 32  # pixels
EACH = 12  # drawings of every caption in training; evaluation has one, of captions that training has not
_COLORS = {
    "red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 60, 220), "yellow": (235, 215, 40),
    "white": (245, 245, 245), "purple": (140, 40, 170),
}  # fmt: skip
_GROUNDS = {"black": (10, 10, 10), "gray": (120, 120, 120), "brown": (110, 65, 25)}
_SIZES = {"small": 4, "large": 8}  # half the width
_SHAPES = ("circle", "square", "triangle", "cross")
_PLACES = {"left": (16, 9), "right": (16, 23), "top": (9, 16), "bottom": (23, 16)}
_WORDS = ("a", *_SIZES, *_COLORS, *_SHAPES, "on", *_GROUNDS, "at", "the", *_PLACES)
_START, _END = "<start>", "<end>"
_VOCABULARY = {word: number for number, word in enumerate(("<pad>", _START, *_WORDS, _END))}
VOCAB_SIZE = len(_VOCABULARY)
CONTEXT = 12  # tokens of a caption, those of its beginning and end among them
SPLITS = ("train", "val", "test")


class Shapes:
    """One shape an image, in one of six colours and two sizes, at one of four places on one of three grounds."""

    name: str
    class_names: tuple[str, ...] = ()
    image_shape = (SIDE, SIDE, 3)
    decoding: Decoding | None = None

    def __init__(self, split: str) -> None:
        self.name = f"shapes/{split}"
        every = list(itertools.product(_SIZES, _COLORS, _SHAPES, _GROUNDS, _PLACES))
        order = np.random.default_rng(SPLIT_SEED).permutation(len(every))
        fifth = len(every) // 5
        chosen = {"test": order[:fifth], "val": order[fifth : 2 * fifth], "train": order[2 * fifth :]}[split]
        self.things = [every[index] for index in chosen]
        self.each = EACH if split == "train" else 1
        self.seed = SPLITS.index(split)

    @property
    def labels(self) -> np.ndarray:
        """Zeros: there are no classes."""
        return np.zeros(len(self), np.int64)

    def __len__(self) -> int:
        return len(self.things) * self.each

    def __getitem__(self, index: int) -> Example:
        return {"image": self._draw(index), "label": 0, "name": self.describe(index)}

    def text(self, index: int) -> str:
        """Returns the caption of an image."""
        size, color, shape, ground, place = self.things[index // self.each]
        return f"a {size} {color} {shape} on {ground} at the {place}"

    def check(self, index: int) -> None:
        """Raises nothing: every image can be drawn."""

    def describe(self, index: int) -> str:
        """Returns the caption and which of its drawings it is."""
        return f"{self.name}[{index}] ({self.text(index)})"

    def _draw(self, index: int) -> np.ndarray:
        size, color, shape, ground, place = self.things[index // self.each]
        drawn = np.random.default_rng([SPLIT_SEED, self.seed, index])
        centre = np.asarray(_PLACES[place]) + drawn.integers(-2, 3, 2)
        half = _SIZES[size] + drawn.integers(-1, 2)
        y, x = np.mgrid[:SIDE, :SIDE] - centre[:, None, None]
        inside = {
            "circle": x**2 + y**2 <= half**2,
            "square": np.maximum(abs(x), abs(y)) <= half,
            "triangle": (y >= -half) & (y <= half) & (2 * abs(x) <= y + half),
            "cross": (np.minimum(abs(x), abs(y)) <= half // 3) & (np.maximum(abs(x), abs(y)) <= half),
        }[shape]
        image = np.where(inside[..., None], _COLORS[color], _GROUNDS[ground]) + drawn.normal(0, 8, (SIDE, SIDE, 3))
        return np.clip(image, 0, 255).astype(np.uint8)


def find_splits(data: DataConfig) -> tuple[str, ...]:
    """Returns the three splits, whose captions differ."""
    return SPLITS


def open_source(data: DataConfig, split: str, channels: int, num_classes: int | None) -> Shapes:
    """Returns the drawings of a split."""
    del data, channels, num_classes
    check_split("shapes", split, SPLITS)
    return Shapes(split)


def write_tokenizer(folder: Path) -> None:
    """Writes the files of a tokeniser of the captions' words, as transformers reads them."""
    special = [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for token, number in _VOCABULARY.items() if token.startswith("<")
    ]  # fmt: skip
    ends = [{"SpecialToken": {"id": token, "type_id": 0}} for token in (_START, _END)]
    whole = [ends[0], {"Sequence": {"id": "A", "type_id": 0}}, ends[1]]
    tokens = {t: {"id": t, "ids": [_VOCABULARY[t]], "tokens": [t]} for t in (_START, _END)}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "single": whole, "pair": whole, "special_tokens": tokens},
        "decoder": None, "model": {"type": "WordLevel", "vocab": _VOCABULARY, "unk_token": "<pad>"},
    }  # fmt: skip
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<pad>",
            "bos_token": _START, "eos_token": _END, "model_max_length": CONTEXT}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")


def tokenize(text: str) -> list[int]:
    """Returns the numbers of a caption's words between those of its beginning and end."""
    return [_VOCABULARY[word] for word in (_START, *text.split(), _END)]
