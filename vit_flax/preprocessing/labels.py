"""Class names of Hugging Face's and timm's config.json, and of ImageNet where timm is installed."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Names = tuple[str, ...]
_SYNSETS = "imagenet_synsets.txt"
_LEMMAS = "imagenet_synset_to_lemma.txt"
_PLACEHOLDER = re.compile(r"LABEL_\d+")
_MAX_CLASSES = 1 << 20


def read_labels(config: Mapping[str, object]) -> tuple[Names | None, Names | None]:
    """Returns the class names of a config.json, and their descriptions where the names are codes.

    A class that a list with gaps does not name gets its number as name.
    """
    told = config.get("pretrained_cfg")
    timm = told if isinstance(told, Mapping) else {}
    descriptions = config.get("label_descriptions") or timm.get("label_descriptions")
    for values in (config, timm):
        for key in ("label_names", "labels"):
            if names := _names(values.get(key), _count(config, timm)):
                return names, _described(names, descriptions)
    names = _names(config.get("id2label"), config.get("num_labels"))
    if names and all(_PLACEHOLDER.fullmatch(name) for name in names):
        names = None  # transformers' placeholders
    if names:
        return names, _described(names, descriptions)
    return _names(descriptions, _count(config, timm)), None  # told by number they name the classes


def _count(config: Mapping[str, Any], timm: Mapping[str, Any]) -> Any:
    return config.get("num_classes", timm.get("num_classes"))


def _names(told: Any, count: Any) -> Names | None:
    """Returns a list, or a mapping of numbers to names, as a tuple with a name per class."""
    if isinstance(told, Mapping):
        try:
            named = {int(key): str(name) for key, name in told.items()}
        except (TypeError, ValueError):
            return None
        last = max(named, default=-1) + 1
        size = count if isinstance(count, int) and count >= last else last
        if not named or min(named) < 0 or size > _MAX_CLASSES:
            return None
        return tuple(named.get(index, str(index)) for index in range(size))
    if isinstance(told, Sequence) and not isinstance(told, str) and told:
        return tuple(map(str, told))
    return None


def _described(names: Names, told: Any) -> Names | None:
    """Returns what describes each class: by its name, by its number, or a list in the classes' order."""
    if isinstance(told, Sequence) and not isinstance(told, str) and len(told) == len(names):
        return tuple(map(str, told))
    if not isinstance(told, Mapping):
        if told:
            what = f"has {len(told)}" if isinstance(told, list | tuple) else "is neither a list nor an object"
            logger.warning("label_descriptions is left out: it %s, for %d classes", what, len(names))
        return None
    by_number = {str(key): value for key, value in told.items()}
    return tuple(str(told.get(name, by_number.get(str(index), name))) for index, name in enumerate(names))


def is_imagenet(config: Mapping[str, object], preset: str | None, num_classes: int) -> bool:
    """Returns whether weights of 1,000 classes are ImageNet-1k's: the tag of timm's name ends in in1k."""
    cfg = config.get("pretrained_cfg") or config
    tag = cfg.get("tag") if "architecture" in config and isinstance(cfg, Mapping) else (preset or "").partition(".")[2]
    return num_classes == 1000 and str(tag or "").removesuffix("_e50").endswith("in1k")


def imagenet_names() -> tuple[Names, Names] | None:
    """Returns the synset ids and lemmas of ImageNet-1k's classes from timm's lists, or None without timm.

    timm is not imported, which would need torch and take seconds.
    """
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(next(iter(found.submodule_search_locations))) / "data" / "_info"
    try:
        codes = (folder / _SYNSETS).read_text("utf-8").split()
        lines = (folder / _LEMMAS).read_text("utf-8").splitlines()
    except OSError:
        return None
    lemmas = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(codes), tuple(lemmas.get(code, code) for code in codes)
