"""What training scripts wrap around tensors: containers such as {"model": ...}, prefixes such as `module.`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vit_flax.convert.checkpoint import Checkpoint
from vit_flax.convert.rules import ConversionError

# Entries of a training checkpoint that hold a model's tensors. Where a file has several they are different weights, and
# nobody but the caller can say which are meant.
ENTRIES = (
    "model", "state_dict", "model_state_dict", "state_dict_ema", "model_ema", "module", "teacher", "student",
    "encoder", "target_encoder", "opt/target", "params", "img",
)  # fmt: skip
# Prefixes that every name has: DataParallel, torch.compile, and models kept as a member of another.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "vit.")
HEADS = ("head.", "dino_head.", "ibot_head.")  # what stands beside `backbone.` in self-supervised training
_CHUNK = re.compile(r"blocks\.\d+\.(\d+)\.(.+)")


def unwrap(checkpoint: Checkpoint, entry: str | None = None) -> Checkpoint:
    """Returns the checkpoint with the model's own names.

    Args:
        checkpoint: as read.
        entry: the entry to take, where it has several.

    Raises:
        ConversionError: there are several sets of weights and `entry` says nothing, or there is no such entry.
    """
    names = {name: name for name in checkpoint.shapes}  # the model's own name -> the checkpoint's
    while found := [e for e in ENTRIES if any(name.startswith(f"{e}/") for name in names)] or entry:
        chosen = _choose(checkpoint.source, names, found if isinstance(found, list) else [], entry)
        names, entry = _strip(names, f"{chosen}/"), None
    while prefix := next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None):
        names = _strip(names, prefix)
    names = _without_chunks(_without_backbone(names))
    if all(own == name for own, name in names.items()):
        return checkpoint
    return checkpoint.renamed({name: own for own, name in names.items()})


def _choose(source: str, names: Collection[str], found: list[str], entry: str | None) -> str:
    if entry is not None:
        if not any(name.startswith(f"{entry}/") for name in names):
            there = sorted({name.split("/")[0] for name in names if "/" in name})
            raise ConversionError(f"{source}: has no entry {entry!r}; it has {', '.join(there) or 'none'}")
        return entry
    if len(found) > 1:
        raise ConversionError(
            f"{source}: holds several sets of weights ({', '.join(found)}); say which with `entry={found[0]!r}`"
        )
    return found[0]


def _strip(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {own.removeprefix(prefix): name for own, name in names.items() if own.startswith(prefix)}


def _without_backbone(names: dict[str, str]) -> dict[str, str]:
    # a self-supervised model beside its training heads; `backbone.` of the tutorial's models is none of these
    inside = [name for name in names if name.startswith("backbone.")]
    beside = [name for name in names if not name.startswith("backbone.")]
    if "backbone.patch_embed.proj.weight" not in inside or not all(name.startswith(HEADS) for name in beside):
        return names
    return {own.removeprefix("backbone."): name for own, name in names.items()}


def _without_chunks(names: dict[str, str]) -> dict[str, str]:
    # DINOv2 trains blocks in chunks, blocks.<chunk>.<block>, and counts the blocks through all of them
    blocks = [name for name in names if name.startswith("blocks.")]
    if not blocks or not all(_CHUNK.fullmatch(name) for name in blocks):
        return names
    renamed = {_CHUNK.sub(r"blocks.\1.\2", own): name for own, name in names.items()}
    return renamed if len(renamed) == len(names) else names
