"""The tokeniser of a checkpoint: texts to the token ids of its text tower.

Tokenisers are other libraries', mostly transformers', imported when one is read.
"""

from __future__ import annotations

import dataclasses
import html
import os
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from vit_flax.config import TextConfig, TwoTowersConfig
from vit_flax.convert import Checkpoint, read_checkpoint
from vit_flax.convert.checkpoint import one_line
from vit_flax.convert.folder import HUB, TOKENIZER_FILES

_CHUNK = 4096  # texts tokenised in one call of the library
_SHOWN = 60
_SENTENCEPIECE = ".model"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of texts, and their attention mask."""

    numbers: Int[np.ndarray, "t n"]
    mask: Bool[np.ndarray, "t n"] | None  # False for padding; None: padding is attended to like every token


class Tokenizer:
    """Turns texts into token ids, truncated and padded to the model's context length as the weights' owner does.

    Args:
        run: the library's tokeniser: texts to padded and truncated 'input_ids' and, of some, 'attention_mask'.
        config: config of the text tower.
        origin: name of the tokeniser in messages.
        clean: function applied to each text first.
        hides_padding: whether to return the attention mask, where the library has one.
    """

    def __init__(
        self,
        run: Callable[[list[str]], Mapping[str, Sequence[Sequence[int]]]],
        config: TextConfig,
        origin: str,
        clean: Callable[[str], str] = lambda text: text,
        hides_padding: bool = True,
    ) -> None:
        self.config, self.origin = config, origin
        self._run, self._clean, self._hides_padding = run, clean, hides_padding

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Returns the token ids (T, context_length) of texts.

        Raises:
            ValueError: a text is no str or not UTF-8, an id is outside the vocabulary, or the end token at which the
                model pools is missing; in one line.
        """
        if isinstance(texts, str):
            raise ValueError("give a list of texts, also where there is only one")
        checked = [self._clean(_checked(text, place)) for place, text in enumerate(texts)]
        length = self.config.context_length
        numbers, masks = [np.zeros((0, length), np.int32)], [np.zeros((0, length), bool)]
        for first in range(0, len(checked), _CHUNK):
            found = self._run(checked[first : first + _CHUNK])
            numbers.append(np.asarray(found["input_ids"], np.int64).astype(np.int32))
            if "attention_mask" in found and self._hides_padding:
                masks.append(np.asarray(found["attention_mask"]).astype(bool))
        joined = np.concatenate(numbers)
        self._check(joined, texts)
        return Tokens(joined, np.concatenate(masks) if len(masks) == len(numbers) else None)

    def _check(self, numbers: np.ndarray, texts: Sequence[str]) -> None:
        config = self.config
        wrong = np.argwhere((numbers < 0) | (numbers >= config.vocab_size))
        if len(wrong):
            row, column = wrong[0]
            raise ValueError(
                f"{self.origin}: makes the token {numbers[row, column]} of {_short(str(texts[row]))}, and the model's "
                f"vocabulary has {config.vocab_size}: it is another model's tokeniser"
            )
        if config.pool == "eos":
            endless = np.flatnonzero(~(numbers == config.eos_token_id).any(1))
            if len(endless):
                said = _short(str(texts[endless[0]]))
                raise ValueError(
                    f"{self.origin}: does not end {said} with the token {config.eos_token_id}, where the model looks: "
                    "it is another model's tokeniser"
                )


def read_tokenizer(
    path: str | os.PathLike[str], config: TwoTowersConfig | TextConfig, tokenizer: str | None = None
) -> Tokenizer:
    """Returns the tokeniser of the weights at `path`: of the files beside them, or `tokenizer`.

    Args:
        path: as for `vit_flax.load`.
        config: config of the model, or of its text tower.
        tokenizer: a folder with a tokeniser's files, a sentencepiece file (.model), or hf://owner/name.

    Raises:
        ConversionError: there are no weights.
        ImportError: the tokeniser's library is not installed.
        ValueError: there is no tokeniser, or it cannot be read.
    """
    return find_tokenizer(read_checkpoint(path), config, tokenizer)


def read_tokenizer_alone(tokenizer: str, text: TextConfig) -> Tokenizer:
    """Returns the tokeniser at `tokenizer`, without weights; places and errors are those of `read_tokenizer`."""
    return Tokenizer(_runner(_named(tokenizer), text), text, tokenizer, hides_padding=False)


def find_tokenizer(
    checkpoint: Checkpoint, config: TwoTowersConfig | TextConfig, tokenizer: str | None = None
) -> Tokenizer:
    """Returns the tokeniser of an opened checkpoint; see `read_tokenizer`."""
    text = config if isinstance(config, TextConfig) else config.text
    told: Any = checkpoint.config or {}
    told = told.get("texts") or told  # this library's own folders say how the tokeniser's owner prepares texts
    clean = _open_clip_clean(told["model_cfg"].get("text_cfg") or {}) if "model_cfg" in told else str
    # open_clip and big_vision do not mask padding; transformers does where its tokeniser returns an attention mask
    hides = "model_type" in told or str(told.get("layout", "")).startswith("huggingface")
    library = _named(tokenizer) if tokenizer is not None else _beside(checkpoint, told)
    return Tokenizer(_runner(library, text), text, tokenizer or str(library.name_or_path), clean, hides)


def _runner(library: Any, text: TextConfig) -> Callable[[list[str]], Mapping[str, Sequence[Sequence[int]]]]:
    def run(texts: list[str]) -> Mapping[str, Sequence[Sequence[int]]]:
        try:
            return library(texts, padding="max_length", truncation=True, max_length=text.context_length)
        except (ValueError, TypeError) as error:  # a tokeniser without a padding token, for example
            raise ValueError(f"{library.name_or_path}: cannot read the texts: {one_line(error)}") from error

    return run


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("tokenisers need transformers: pip install 'vit-linen[text]'") from error
    return transformers


def _beside(checkpoint: Checkpoint, told: Any) -> Any:
    folder = None if checkpoint.path is None else checkpoint.path.parent
    if folder is not None and any((folder / name).is_file() for name in TOKENIZER_FILES):
        return _from_folder(str(folder))
    hint = ""
    if "model_cfg" in told and (name := (told["model_cfg"].get("text_cfg") or {}).get("hf_tokenizer_name")):
        hint = f" (its config names `tokenizer={HUB + name!r}`)"
    raise ValueError(
        f"{checkpoint.source}: no tokeniser lies beside the weights{hint}: pass `tokenizer=FOLDER` with its files, "
        f"a sentencepiece file or {HUB}owner/name"
    )


def _named(tokenizer: str) -> Any:
    path = Path(tokenizer)
    if tokenizer.startswith(HUB):
        return _from_folder(tokenizer.removeprefix(HUB), local=False)
    if path.is_dir():
        if not any((path / name).is_file() for name in TOKENIZER_FILES):
            raise ValueError(f"{tokenizer}: holds no tokeniser (looked for {', '.join(TOKENIZER_FILES)})")
        return _from_folder(tokenizer)
    if path.is_file() and path.suffix == _SENTENCEPIECE:
        return _read(tokenizer, lambda: _transformers().SiglipTokenizer(vocab_file=tokenizer))
    if path.is_file() and path.name in TOKENIZER_FILES:
        return _from_folder(str(path.parent))
    there = "is no tokeniser's file" if path.exists() else "no such file or folder"
    raise ValueError(f"{tokenizer}: {there}; give a folder, a sentencepiece file (.model) or {HUB}owner/name")


def _from_folder(place: str, local: bool = True) -> Any:
    transformers = _transformers()
    options = {"local_files_only": local, "trust_remote_code": False}
    return _read(place, lambda: transformers.AutoTokenizer.from_pretrained(place, **options))


def _read(place: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except ImportError:
        raise
    except Exception as error:  # a library that does not check a broken file may raise anything
        raise ValueError(f"{place}: its tokeniser cannot be read: {one_line(error)}") from error


def _checked(text: object, place: int) -> str:
    if not isinstance(text, str):
        raise ValueError(f"text {place} is {one_line(repr(text))[:_SHOWN]}, no text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text {place}, {ascii(text)[:_SHOWN]}, is not in UTF-8") from error
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + " ...")


# open_clip's cleaning functions; 'whitespace' is its default.
_CLEANS: dict[str, Callable[[str], str]] = {
    "whitespace": lambda text: " ".join(text.split()),
    "lower": lambda text: " ".join(text.split()).lower(),
    "canonicalize": lambda text: " ".join(
        text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower().split()
    ),
}


def _open_clip_clean(text_cfg: Mapping[str, Any]) -> Callable[[str], str]:
    arguments = dict(text_cfg.get("tokenizer_kwargs") or {})
    # open_clip's own tokeniser defaults to 'lower', which transformers' CLIP tokeniser does itself
    name = arguments.pop("clean", "whitespace")
    refused = [f"{key}={value!r}" for key, value in arguments.items() if value]
    refused += [f"tokenizer_mode={text_cfg['tokenizer_mode']!r}"] if text_cfg.get("tokenizer_mode") else []
    refused += [f"clean={name!r}"] if name not in _CLEANS else []
    if refused:
        raise ValueError(f"open_clip_config.json: texts are prepared with unknown {', '.join(refused)}")

    def clean(text: str) -> str:
        return _CLEANS[name](html.unescape(html.unescape(_fixed(text))))

    return clean


def _fixed(text: str) -> str:
    """Returns a text repaired by ftfy, as open_clip does; ftfy leaves ASCII as it is."""
    if text.isascii():
        return text
    try:
        import ftfy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"open_clip repairs texts such as {_short(text)} with ftfy: pip install ftfy") from error
    return ftfy.fix_text(text)
