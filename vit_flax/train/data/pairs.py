"""Image-text pairs: tokenises a source's texts, which are its labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vit_flax.config import TextConfig
from vit_flax.convert.folder import tokenizer_files
from vit_flax.preprocessing.decode import Decoding
from vit_flax.tokenizing import read_tokenizer_alone
from vit_flax.train.config import DataConfig
from vit_flax.train.data.source import DataError, Example, Source

TOKENIZERS = {"shapes": "vit_flax.train.data.shapes"}  # sources with a tokeniser of their own


class Texts(Source, Protocol):
    """A source whose images have a text each."""

    def text(self, index: int) -> str:
        """Returns the text of an image; DataError where it is none."""
        ...


class Pairs:
    """A source of images whose label is their text's tokens, (context_length,) of int32; 0 pads."""

    def __init__(self, source: Texts, data: DataConfig, text: TextConfig) -> None:
        self.source, self.data, self.config = source, data, text
        self.name, self.class_names, self.image_shape = source.name, (), source.image_shape
        self._tokenize: Callable[[str], np.ndarray] | None = None
        self.tokens(0)  # a tokeniser that does not fit is told now

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_tokenize": None}  # a worker process opens its own

    @property
    def decoding(self) -> Decoding | None:
        """What is followed of what files say besides pixels."""
        return self.source.decoding

    @decoding.setter
    def decoding(self, value: Decoding | None) -> None:
        self.source.decoding = value

    @property
    def labels(self) -> np.ndarray:
        """Zeros: there are no classes."""
        return np.zeros(len(self), np.int64)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return {**self.source[index], "label": self.tokens(index)}

    def tokens(self, index: int) -> np.ndarray:
        """Returns the tokens of an image's text."""
        if self._tokenize is None:
            self._tokenize = tokenizer_of(self.data, self.config)
        try:
            return self._tokenize(self.source.text(index))
        except ValueError as error:
            raise DataError(f"{self.describe(index)}: {error}") from error

    def check(self, index: int) -> None:
        """Raises BadImageError where an image's header says that it cannot be read."""
        self.source.check(index)

    def describe(self, index: int) -> str:
        """Returns the name of an image without reading it."""
        return self.source.describe(index)


def tokenizer_of(data: DataConfig, text: TextConfig) -> Callable[[str], np.ndarray]:
    """Returns what makes tokens of a text.

    Raises:
        DataError: nothing says which tokeniser, or it cannot be read.
    """
    if data.tokenizer is None:
        if data.name not in TOKENIZERS:
            raise DataError(f"data.name={data.name} has no tokeniser of its own: set data.tokenizer to a folder with "
                            "one, a sentencepiece file or hf://owner/name")  # fmt: skip
        own: Any = import_module(TOKENIZERS[data.name])

        def tokenize(words: str) -> np.ndarray:
            numbers = np.asarray(own.tokenize(words)[: text.context_length], np.int32)
            if numbers.max(initial=0) >= text.vocab_size:
                raise DataError(f"{data.name} has {own.VOCAB_SIZE} words: set model.text_vocab_size={own.VOCAB_SIZE}")
            return np.pad(numbers, (0, text.context_length - len(numbers)))

        return tokenize
    try:
        tokenizer = read_tokenizer_alone(data.tokenizer, text)
    except ValueError as error:
        raise DataError(f"data.tokenizer: {error}") from error
    return lambda words: tokenizer([words]).numbers[0]


def write_tokenizer(data: DataConfig, folder: Path) -> None:
    """Writes the tokeniser's files beside weights, where they lie in a folder here."""
    if data.tokenizer is None and data.name in TOKENIZERS:
        import_module(TOKENIZERS[data.name]).write_tokenizer(folder)
    elif data.tokenizer is not None and Path(data.tokenizer).is_dir():
        for name, file in tokenizer_files(Path(data.tokenizer)).items():
            shutil.copyfile(file, folder / name)
