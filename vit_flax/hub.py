"""Uploads weights to a Hugging Face hub."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from jaxtyping import PyTree

from vit_flax.convert import ConversionError
from vit_flax.model_card import CARD, model_card
from vit_flax.models import TwoTowers, VisionTransformer
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.pretrained import save

# a run's checkpoints, logs and profiles are not uploaded
_LEFT = ["checkpoints/*", "tensorboard/*", "*.tfevents.*", "profile/*"]
_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def push_to_hub(
    source: str | os.PathLike[str] | VisionTransformer | TwoTowers,
    repository: str,
    params: PyTree = None,
    *,
    layout: str | None = None,
    preprocessing: Preprocessing | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    licence: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Uploads a folder of weights, or a model with its parameters, with a model card, and returns the commit's address.

    The repository is created if there is none. A README.md in the folder is kept; otherwise a card is written for the
    upload alone (`vit_flax.model_card.model_card`). The server is huggingface.co, or HF_ENDPOINT's.

    Args:
        source: a folder that `save`, `convert` or training wrote, or a model.
        repository: owner/name.
        params: the model's parameters; not with a folder.
        layout: layout of a model's files, as for `save`; transformers' own load there without this library.
        preprocessing: preprocessing of images, as for `save`; not with a folder, which has its own.
        tokenizer: folder whose tokeniser's files are uploaded too, as for `save`; not with a folder, which has them.
        licence: the hub's identifier of the licence, such as apache-2.0; None: the card names none.
        private: whether a new repository is private; None: the account's default.
        revision: branch to upload to; None: main.
        token: access token of the hub; None: that of `hf auth login` or HF_TOKEN.

    Raises:
        ConversionError: the folder holds no weights, `repository` is no owner/name, arguments do not fit `source`,
            huggingface_hub is missing, or the hub refuses or cannot be reached.
    """
    if not _NAME.fullmatch(repository):
        raise ConversionError(f"{repository!r} is no repository: owner/name, of letters, digits, '-', '_' and '.'")
    if isinstance(source, VisionTransformer | TwoTowers):
        if params is None:
            raise ConversionError("a model is uploaded with its parameters: push_to_hub(model, repository, params)")
        with tempfile.TemporaryDirectory() as place:
            save(Path(place, "weights"), source, params, layout, preprocessing, tokenizer)
            return _upload(Path(place, "weights"), repository, licence, private, revision, token)
    if any(given is not None for given in (params, layout, preprocessing, tokenizer)):
        raise ConversionError(
            "a folder has its own parameters, layout, preprocessing and tokeniser; `vit-flax convert` makes another"
        )
    folder = Path(source)
    if not folder.exists():
        raise ConversionError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise ConversionError(f"{folder}: a folder is uploaded; `vit-flax convert {folder} FOLDER` makes one of a file")
    return _upload(folder, repository, licence, private, revision, token)


def _upload(
    folder: Path, repository: str, licence: str | None, private: bool | None, revision: str | None, token: str | None
) -> str:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConversionError("pushing needs huggingface_hub: pip install 'vit-linen[hub]'") from error
    card = model_card(folder, repository, licence)  # before the upload: raises where the weights cannot be loaded
    operations = [
        huggingface_hub.CommitOperationAdd(file.relative_to(folder).as_posix(), file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(file.relative_to(folder).match(pattern) for pattern in _LEFT)
    ]
    if not (folder / CARD).is_file():
        operations.append(huggingface_hub.CommitOperationAdd(CARD, card.encode()))
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        message = "Upload by vit_flax"
        commit = api.create_commit(repository, operations, commit_message=message, revision=revision)
    except Exception as error:  # of the network or the hub, of many types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConversionError(f"{repository}: the hub did not take it: {reason[0]}") from error
    return commit.commit_url
