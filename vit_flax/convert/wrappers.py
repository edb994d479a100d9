"""Finds a model in a file: containers such as {"model": ...}, prefixes such as `module.`, towers of larger models."""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from vit_flax.convert.checkpoint import Checkpoint
from vit_flax.convert.rules import ConversionError


@dataclasses.dataclass(frozen=True)
class Anchor:
    """The evidence for a layout's model under a prefix."""

    name: str  # name of a tensor that every such model has
    tell: Callable[[Collection[str]], str | None]  # of the names under the same prefix: the layout's evidence
    inner: str = ""  # prefix of the model within a larger one that the layout knows
    beside: Collection[str] = ()  # first parts of names of that one that belong to it as well


# Usual wrappers, taken off where no known model is found: entries of training checkpoints ...
ENTRIES = (
    "model", "state_dict", "model_state_dict", "state_dict_ema", "model_ema", "module", "teacher", "student",
    "encoder", "target_encoder", "opt/target", "params", "img",
)  # fmt: skip
# ... and prefixes that every name has.
PREFIXES = ("module.", "model.", "backbone.", "encoder.", "vit.")
# Parts of names that torch's wrappers insert anywhere.
_INFIXES = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Siblings of `backbone.` that belong to the model: a classifier, the heads of self-supervised training.
_HEADS = re.compile(r"head\.(weight|bias)|(head\.(mlp|last_layer)|dino_head|ibot_head)\..+")
_CHUNK = re.compile(r"blocks\.\d+\.(\d+)\.(.+)")
_MOST = 64  # models in one file
_SHOWN = 8


def take(checkpoint: Checkpoint, entry: str | None, anchors: Sequence[Anchor]) -> Checkpoint:
    """Returns the checkpoint with the model's own names; `notes` say what was left out beside it.

    Args:
        checkpoint: as read.
        entry: where the model stands: levels of mappings and of names, with dots or slashes between them, whole or
            from any level on ('state_dict/module.teacher', 'module.teacher', 'teacher'); '' is the file's top.
        anchors: what tells that a model stands somewhere.

    Raises:
        ConversionError: there are several models and `entry` does not say which, or there is no such entry.
    """
    names = _without_infixes(checkpoint.shapes)  # the model's own name -> the checkpoint's
    prefix = _find_entry(checkpoint.source, names, entry) if entry else ""
    places = _places(names, prefix, anchors)
    if entry == "" and "" in places:
        inner = tuple(place for place in places if place)
        names = {own: name for own, name in names.items() if not (inner and own.startswith(inner))}
        places = [""]
    if len(places) > 1:
        spelled = [_spelled(place, places, names) for place in places]
        told = ", ".join(text or "the top" for text in spelled[:_SHOWN]) + (" ..." if len(spelled) > _SHOWN else "")
        example = next(text for text in spelled if text)
        raise ConversionError(
            f"{checkpoint.source}: holds several sets of weights ({told}); say which with `entry={example!r}`"
            + (" or `entry=''` for the top" if "" in spelled else "")
        )
    if places:
        taken = _strip(names, places[0])
        taken = _own(taken, anchors) | _heads_beside(names, places[0])
    else:
        taken = _by_custom(checkpoint.source, _strip(names, prefix))
    taken = _without_chunks(taken)
    note = _left_out(checkpoint.shapes, taken.values(), places[0] if places else prefix)
    if note:
        checkpoint = dataclasses.replace(checkpoint, notes=(*checkpoint.notes, note))
    if len(taken) == len(checkpoint.shapes) and all(own == name for own, name in taken.items()):
        return checkpoint
    return checkpoint.renamed({name: own for own, name in taken.items()})


def _find_entry(source: str, names: Collection[str], entry: str) -> str:
    """Returns the prefix that `entry` stands for."""
    found = _prefixes(names, entry)
    if len(found) > 1:
        told = ", ".join(repr(prefix[:-1]) for prefix in found[:_SHOWN])
        raise ConversionError(f"{source}: has entry {entry!r} more than once; give more of it: {told}")
    if not found:
        there = Counter(re.split(r"[./]", name)[0] for name in names if re.search(r"[./]", name))
        told = ", ".join(name for name, _ in there.most_common(_SHOWN)) or "none"
        raise ConversionError(f"{source}: has no entry {entry!r}; it has {told}")
    return found[0]


def _prefixes(names: Collection[str], entry: str) -> list[str]:
    # from the top on, or else from any level on
    levels = r"[./]".join(re.escape(level) for level in re.split(r"[./]", entry.strip("./")))
    for pattern in (rf"{levels}[./]", rf".*?[./]{levels}[./]"):
        compiled = re.compile(pattern)
        found = {hit.group() for name in names if (hit := compiled.match(name))}
        if found:
            return sorted(found)
    return []


def _places(names: Collection[str], within: str, anchors: Sequence[Anchor]) -> list[str]:
    """Returns the prefixes under which known models are found, in the file's order."""
    ordered = sorted(names)
    found: dict[str, str] = {}  # by the anchor: of two prefixes the shorter is the whole model's
    for name in names:
        if not name.startswith(within):
            continue
        for anchor in anchors:
            prefix = name[: -len(anchor.name)]
            if not name.endswith(anchor.name) or (prefix and prefix[-1] not in "./") or not prefix.startswith(within):
                continue
            if len(found.get(name, prefix + "x")) <= len(prefix):
                continue
            if anchor.tell(_without_chunks(dict.fromkeys(_under(ordered, prefix), ""))):
                found[name] = prefix
        if len(found) > _MOST:
            raise ConversionError(f"more than {_MOST} models in one file; take one with `entry='...'`")
    return list(dict.fromkeys(found.values()))


def _under(ordered: list[str], prefix: str) -> list[str]:
    first = bisect.bisect_left(ordered, prefix)
    last = bisect.bisect_left(ordered, prefix + chr(0x10FFFF), first)
    return [name[len(prefix) :] for name in ordered[first:last]]


def _spelled(place: str, places: Sequence[str], names: Collection[str]) -> str:
    """Returns the shortest entry that names this prefix and no other."""
    ends = [end.end() for end in re.finditer(r"[./]", place)]
    shortest = next((end for end in ends if sum(p.startswith(place[:end]) for p in places) == 1), len(place))
    levels = place[:shortest].rstrip("./")
    last = re.split(r"[./]", levels)[-1]
    return last if _prefixes(names, last) == [place[:shortest]] else levels


def _strip(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {own.removeprefix(prefix): name for own, name in names.items() if own.startswith(prefix)}


def _own(names: dict[str, str], anchors: Sequence[Anchor]) -> dict[str, str]:
    """Returns the names without those of other parts of a larger model."""
    known = [anchor for anchor in anchors if anchor.name in names and anchor.tell(names)]
    if not known or not all(anchor.inner for anchor in known):
        return names
    inner = tuple(anchor.inner for anchor in known)
    beside = {level for anchor in known for level in anchor.beside}
    return {own: name for own, name in names.items() if own.startswith(inner) or re.split(r"[./]", own)[0] in beside}


def _heads_beside(names: Mapping[str, str], place: str) -> dict[str, str]:
    if not re.search(r"(^|[./])backbone\.$", place):
        return {}
    beside = _strip(names, place.removesuffix("backbone."))
    return {own: name for own, name in beside.items() if _HEADS.fullmatch(own)}


def _left_out(all_names: Collection[str], taken: Collection[str], place: str) -> str:
    """Describes the tensors that are not taken, level by level; '' where all are."""
    kept = set(taken)
    place_levels = re.split(r"[./]", place)
    groups: Counter[str] = Counter()
    for name in all_names:
        if name in kept:
            continue
        ends = [end.start() for end in re.finditer(r"[./]", name)]
        levels = re.split(r"[./]", name)
        shared = next((i for i, (a, b) in enumerate(zip(levels, place_levels, strict=False)) if a != b), 0)
        groups[name[: [*ends, len(name)][shared]]] += 1
    if not groups:
        return ""
    told = [f"{group} ({count} tensor{'s' * (count > 1)})" for group, count in groups.most_common(_SHOWN)]
    more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    return f"took {place.rstrip('./') or 'the model'}, left out {', '.join(told)}{more}"


def _without_infixes(names: Collection[str]) -> dict[str, str]:
    own = {name: name for name in names}
    if any(infix in name for name in names for infix in _INFIXES):
        for infix in _INFIXES:
            own = {re.sub(rf"(^|(?<=[./])){infix}\.", "", new): old for new, old in own.items()}
        if len(own) != len(names):  # two names would become one
            return {name: name for name in names}
    return own


def _by_custom(source: str, names: dict[str, str]) -> dict[str, str]:
    """Takes off the usual wrappers, where no known model is found."""
    while found := [e for e in ENTRIES if any(name.startswith(f"{e}/") for name in names)]:
        if len(found) > 1:
            raise ConversionError(
                f"{source}: holds several sets of weights ({', '.join(found)}), none of a known layout; "
                f"say which with `entry={found[0]!r}`"
            )
        names = _strip(names, f"{found[0]}/")
    while prefix := next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None):
        names = _strip(names, prefix)
    return names


def _without_chunks(names: dict[str, str]) -> dict[str, str]:
    # DINOv2 trains blocks in chunks, blocks.<chunk>.<block>, and counts the blocks through all of them
    blocks = [name for name in names if name.startswith("blocks.")]
    if not blocks or not all(_CHUNK.fullmatch(name) for name in blocks):
        return names
    renamed = {_CHUNK.sub(r"blocks.\1.\2", own): name for own, name in names.items()}
    return renamed if len(renamed) == len(names) else names
