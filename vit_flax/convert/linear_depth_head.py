"""DINOv2's linear heads for depth estimation: names in their files, and the fields that shapes determine."""

from __future__ import annotations

import re

from vit_flax.convert.checkpoint import Checkpoint
from vit_flax.convert.rules import CONV, ConversionError, Rule

_WEIGHT = "decode_head.conv_depth.weight"
_PUBLISHED = {"nyu": 10.0, "kitti": 80.0}  # the farthest bin, by the data set in the names of the published files
# the blocks of heads on four layers, by the depth of the backbone
_FOUR = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}
_KERNEL, _BIAS = "head/conv_depth/kernel", "head/conv_depth/bias"
HEAD_RULES = (Rule(_WEIGHT, _KERNEL, CONV), Rule("decode_head.conv_depth.bias", _BIAS))
OWN_RULES = (Rule(_KERNEL, _KERNEL), Rule(_BIAS, _BIAS))  # of an Orbax folder


def rules_of(head: Checkpoint) -> tuple[Rule, ...]:
    """Returns the rules of a head that `split_head` returned."""
    return OWN_RULES if _KERNEL in head.shapes else HEAD_RULES


def split_head(checkpoint: Checkpoint) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Returns the head that a checkpoint holds, under the names of its rules, and the backbone that it holds.

    Raises:
        ConversionError: it holds a depth head of DINOv2 of another kind.
    """
    names = list(checkpoint.shapes)
    found = next((name for name in names if re.fullmatch(rf"(.*[./])?({re.escape(_WEIGHT)}|{_KERNEL})", name)), None)
    if found is None:
        if dense := next((name for name in names if re.search(r"(^|[./])decode_head\.", name)), None):
            raise ConversionError(
                f"{checkpoint.source}: has {dense}: is another head than DINOv2's linear ones for depth "
                f"({_WEIGHT}), and is not read"
            )
        return None, checkpoint
    top = found.removesuffix(_KERNEL).removesuffix(_WEIGHT)
    inner = {name: name.removeprefix(top) for name in names if name.startswith(top)}
    head = {name: own for name, own in inner.items() if re.match("decode_head[.]|head/", own)}
    rest = {name: re.sub("^backbone[./]", "", own) for name, own in inner.items() if re.match("backbone[./]", own)}
    return checkpoint.renamed(head), checkpoint.renamed(rest) if rest else None


def told_by_head(
    head: Checkpoint, width: int, depth: int, layers: tuple[int, ...] | None, max_depth: float | None
) -> dict[str, object]:
    """Returns the fields of a LinearDepthConfig from a head's shapes, its stored config and its file's name.

    Args:
        head: as `split_head` returns it.
        width: of the backbone's tokens.
        depth: of the backbone.
        layers: the blocks that the caller names.
        max_depth: the farthest bin that the caller names.

    Raises:
        ConversionError: it is of another backbone, or does not determine a field that the caller does not name.
    """
    source, told = head.source, head.config or {}
    bins, channels = head.shapes[_KERNEL][:-3:-1] if _KERNEL in head.shapes else (*head.shapes[_WEIGHT], 0)[:2]
    if bins < 2:
        raise ConversionError(f"{source}: estimates depth in {bins} channel, not in bins: such heads are not read")
    count, left = divmod(channels, 2 * width)
    if left or not count:
        raise ConversionError(
            f"{source}: its {channels} channels are not class token and patch of layers of width {width}: it is of "
            "another backbone"
        )
    layers = layers or _tuple(told.get("layers")) or {1: (depth - 1,), 4: _FOUR.get(depth)}.get(count)
    if layers is None:
        raise ConversionError(
            f"{source}: reads {count} layers of {depth}: pass `layers=(3, 6, 9, 11)`, its blocks from 0"
        )
    layers = tuple(layer + depth if layer < 0 else layer for layer in layers)
    if len(layers) != count:
        raise ConversionError(f"{source}: reads {count} layers, and {len(layers)} are named: {layers}")
    if max_depth is None:
        stored = told.get("max_depth")
        names = [name for name in _PUBLISHED if name in re.split(r"[^a-z]+", re.sub(r".*[/\\]", "", source).lower())]
        max_depth = stored if isinstance(stored, float | int) else _PUBLISHED[names[0]] if len(names) == 1 else None
    if max_depth is None:
        raise ConversionError(
            f"{source}: does not tell its farthest bin: pass `max_depth=10` of a head trained on NYU Depth v2, "
            "`max_depth=80` of one trained on KITTI"
        )
    fields = {name: told[name] for name in ("min_depth", "upsample") if name in told}
    return {**fields, "layers": layers, "max_depth": float(max_depth), "bins": bins}


def _tuple(value: object) -> tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list | tuple) else None
