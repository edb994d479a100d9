"""Folders of weights: a Hugging Face repository, sharded or not, the hub's cache, and hf:// addresses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from vit_flax.convert.checkpoint import Checkpoint, check_listing, check_names, one_line
from vit_flax.convert.rules import ConversionError

# Names that a folder is searched for, in this order.
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "flax_model.msgpack",
)
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".msgpack")
# Files with a suffix of weights that are none: states of optimisers, arguments.
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state\w*|random_states_\w+|\w+_optim_states)(\.[\w.]+)?"
)
# Files that show a folder of weights without a name of WEIGHT_NAMES: torch.distributed.checkpoint's, peft's, Orbax's.
_MARKS = (".metadata", "adapter_config.json", "_METADATA")
HUB = "hf://"
_OPEN_CLIP = "open_clip_config.json"
# Files beside weights with preprocessing and class names.
IMAGE_FILES = (
    "preprocessing.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    _OPEN_CLIP,
)
# Files of tokenisers: any one of them shows that a tokeniser is there.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
# which are no tokeniser without one of those
_BESIDE_TOKENIZERS = ("merges.txt", "special_tokens_map.json", "added_tokens.json")
_SHOWN = 10
_LOOKED_AT = 1000  # entries of a folder
_MAX_JSON = 16 << 20
_MAX_SHARDS = 1000
_PATIENCE_SECONDS = 10.0

Reader = Callable[[Path], Checkpoint]


def find_weights(folder: Path) -> Path:
    """Returns the weights in a folder: of the known names the first, or else the only file with a known suffix.

    A folder of the hub's cache (models--owner--name) stands for its snapshot.

    Raises:
        ConversionError: there are none, or several without a known name.
    """
    if (folder / "snapshots").is_dir():
        folder = _snapshot(folder)
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = _candidates(path.name for path in folder.iterdir() if path.is_file())
    if len(others) == 1:
        return folder / others[0]
    if others:
        raise ConversionError(f"{folder}: holds several weights files, name one of them: {', '.join(others[:10])}")
    below = _folders_with_weights(folder)
    way = f"; they lie in {_told(below)}: give that folder" if below else ""
    way = way.replace("that folder", "one of these") if len(below) > 1 else way
    raise ConversionError(
        f"{folder}: holds no weights (looked for {', '.join(WEIGHT_NAMES)} or one file *{', *'.join(SUFFIXES)}){way}"
    )


def _folders_with_weights(folder: Path) -> list[str]:
    """Returns the folders inside of one that hold weights, one or two levels down: checkpoints of training scripts."""
    found = []
    for pattern in ("*", "*/*"):
        inner = (path for path in itertools.islice(folder.glob(pattern), _LOOKED_AT) if path.is_dir())
        for path in inner:
            names = [file.name for file in itertools.islice(path.iterdir(), _LOOKED_AT)]
            if _candidates(names) or not {*WEIGHT_NAMES, *_MARKS}.isdisjoint(names):
                found.append(path.relative_to(folder).as_posix())
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def _candidates(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(SUFFIXES) and not _NO_WEIGHTS.fullmatch(name))


def _snapshot(folder: Path) -> Path:
    revisions = sorted(path.name for path in (folder / "snapshots").iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file() and main.stat().st_size < 200 and (name := main.read_text("utf-8").strip()) in revisions:
        return folder / "snapshots" / name
    if len(revisions) == 1:
        return folder / "snapshots" / revisions[0]
    raise ConversionError(f"{folder}: holds {len(revisions)} snapshots and no refs/main; give the folder of one")


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Returns the files of the tokeniser in a folder, by name; none where there is no tokeniser."""
    found = {name: folder / name for name in (*TOKENIZER_FILES, *_BESIDE_TOKENIZERS) if (folder / name).is_file()}
    return found if found.keys() & set(TOKENIZER_FILES) else {}


def text_owner(folder: Path) -> dict[str, object]:
    """Returns the text preprocessing of a folder's config, as `vit_flax.tokenizing` reads it."""
    name = next((name for name in ("config.json", _OPEN_CLIP) if (folder / name).is_file()), None)
    told = {} if name is None else read_json(folder / name)
    stored = told.get("texts")
    return (
        stored if isinstance(stored, dict) else {key: told[key] for key in ("model_type", "model_cfg") if key in told}
    )


def read_json(path: Path) -> dict[str, object]:
    """Returns a JSON object from a file, or ConversionError."""
    if path.stat().st_size > _MAX_JSON:
        raise ConversionError(f"{path}: has more than {_MAX_JSON} bytes")
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: is no JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: holds no JSON object")
    return value


def read_shards(path: Path, read_file: Reader) -> Checkpoint:
    """Opens a sharded checkpoint by its index (*.index.json).

    Raises:
        ConversionError: the index names a file elsewhere, or a tensor is not in just the one file it is said to be in.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{path}: has no weight_map")
    check_names(str(path), weight_map)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or re.search(r"[/\\\0]", shard):
            raise ConversionError(f"{path}: {name[:100]} is said to be in {str(shard)[:100]!r}, no file of this folder")
    files = sorted(set(weight_map.values()))
    if len(files) > _MAX_SHARDS:
        raise ConversionError(f"{path}: names {len(files)} files, more than {_MAX_SHARDS}")
    shards: dict[str, Checkpoint] = {}
    for file in files:
        if not (path.parent / file).is_file():
            raise ConversionError(f"{path}: names {file[:100]}, which is not there")
        shards[file] = read_file(path.parent / file)
    faults = [f"{name[:100]} is not in {file}" for name, file in weight_map.items() if name not in shards[file].shapes]
    faults += [
        f"{name} is in {file}, said to be in {weight_map.get(name, 'none')}"
        for file, shard in shards.items()
        for name in shard.shapes
        if weight_map.get(name) != file
    ]
    if faults:
        raise ConversionError(f"{path}: does not tell where the tensors are: {'; '.join(faults[:5])}")
    shapes = {name: shards[file].shapes[name] for name, file in weight_map.items()}
    check_listing(str(path), shapes)
    skipped = {name: kind for shard in shards.values() for name, kind in shard.skipped.items()}
    dtypes = {name: dtype for shard in shards.values() for name, dtype in shard.dtypes.items()}
    return Checkpoint(
        shapes, lambda name: shards[weight_map[name]].read(name), str(path), skipped=skipped, dtypes=dtypes
    )


def with_config(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Returns the checkpoint with the folder's config.json, unless it carries a config of its own.

    open_clip's own weights lie beside its own file, and perhaps beside the config.json of another library's.
    """
    names = ("config.json", _OPEN_CLIP)
    if os.path.basename(checkpoint.source).startswith("open_clip"):
        names = names[::-1]
    name = next((name for name in names if (folder / name).is_file()), None)
    if checkpoint.config is not None or name is None:
        return checkpoint
    return dataclasses.replace(checkpoint, config=read_json(folder / name))


def download(address: str) -> Path:
    """Returns the local weights file of hf://owner/name[@revision][/file], from the hub's cache or through the network.

    Raises:
        ConversionError: it is no such address, huggingface_hub is missing, or neither cache nor network has it.
    """
    repository, revision, file = _parse(address)
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ConversionError(f"{address}: needs huggingface_hub: pip install 'vit-linen[hub]'") from error

    there: set[str] | None = None
    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=_PATIENCE_SECONDS)
        there, revision = {file.rfilename for file in info.siblings or ()}, info.sha
    except errors.HfHubHTTPError as error:  # the hub has answered, and the answer is no
        raise ConversionError(f"{address}: {_reason(error)}") from error
    except Exception:  # no network, of which there are many kinds: then what the cache has
        pass

    def fetch(name: str) -> Path | None:
        if there is not None and name not in there:
            return None
        try:
            offline = there is None
            path = huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=offline)
        except errors.LocalEntryNotFoundError:
            return None
        except Exception as error:  # the network, the disk
            raise ConversionError(f"{address}: {name} cannot be fetched: {one_line(error)}") from error
        return Path(path)

    names = [file] if file else [*WEIGHT_NAMES, *_only_file(repository, there, revision)]
    for name in names:
        path = fetch(name)
        if path is None:
            continue
        place = name.rpartition("/")[0] + "/" if "/" in name else ""
        for shard in _shard_names(path) if name.endswith(".index.json") else []:
            fetch(place + shard)  # those that are missing are named when the index is read
        for beside in ("config.json", *IMAGE_FILES, *TOKENIZER_FILES, *_BESIDE_TOKENIZERS):
            fetch(place + beside)
        return path
    if there is None:
        raise ConversionError(f"{address}: is not in the local cache, and the hub cannot be reached")
    if file:
        raise ConversionError(f"{address}: holds no {file}; of weights it has {_told(_candidates(there))}")
    others = _candidates(there)
    if others:
        raise ConversionError(f"{address}: holds several weights files, name one: {HUB}{repository}/{others[0]} "
                              f"(it has {_told(others)})")  # fmt: skip
    raise ConversionError(f"{address}: holds no weights (looked for {', '.join(WEIGHT_NAMES)})")


def _told(names: list[str]) -> str:
    return (", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")) or "none"


def _parse(address: str) -> tuple[str, str | None, str]:
    """Returns repository, revision and file of hf://owner/name[@revision][/file]."""
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:([@/])([\w./-]+))?", address)
    if found and not re.search(r"(^|/)(\.\.?)?(/|$)", address.removeprefix(HUB)):
        repository, sign, rest = found.groups()
        if sign is None:
            return repository, None, ""
        is_file = rest.endswith((*SUFFIXES, ".index.json"))
        if sign == "/" and is_file:
            return repository, None, rest
        if sign == "@" and not is_file:
            return repository, rest, ""
        if sign == "@" and (parts := re.fullmatch(r"(refs/\w+/\w+|[^/]+)/(.+)", rest)):
            return repository, parts[1], parts[2]
    raise ConversionError(
        f"{address[:200]}: write hf://owner/name or hf://owner/name@revision, with /file.pth after it to take one file"
    )


def _only_file(repository: str, there: set[str] | None, revision: str | None) -> list[str]:
    """Returns the repository's only file of weights, in its main folder, where there is just one."""
    names: Iterable[str] = there or ()
    if there is None:
        names = _cached_names(repository, revision)
    found = _candidates(name for name in names if "/" not in name)
    return found if len(found) == 1 else []


def _cached_names(repository: str, revision: str | None) -> list[str]:
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    ref = home / "refs" / (revision or "main")
    commit = ref.read_text("utf-8").strip() if ref.is_file() and ref.stat().st_size < 200 else revision or ""
    snapshot = home / "snapshots" / commit
    return [path.name for path in snapshot.iterdir()] if commit and "/" not in commit and snapshot.is_dir() else []


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    return sorted(name for name in names if isinstance(name, str) and os.path.basename(name) == name)


def _reason(error: Exception) -> str:
    reasons = {
        "RepositoryNotFoundError": "no such repository on the hub, or it asks for a login (hf auth login)",
        "GatedRepoError": "the repository asks for permission: accept its terms on the hub and log in (hf auth login)",
        "RevisionNotFoundError": "no such revision",
    }
    return reasons.get(type(error).__name__) or f"the hub refuses it: {one_line(error)}"
