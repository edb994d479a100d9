"""Matches the labels of a data source with a model's classes, by name wherever both have names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Matching:
    """The model's class of every label of a source, and notes for the user."""

    numbers: np.ndarray  # (labels,): the model's class, -1 where it has none
    notes: tuple[str, ...]


def match_labels(
    source_names: Sequence[str],
    num_classes: int,
    model_names: Sequence[str] | None,
    descriptions: Sequence[str] | None = None,
) -> Matching:
    """Returns the classes of a source's labels.

    Args:
        source_names: names of the source's labels; '0', '1' ... in order are no names.
        num_classes: number of the model's classes.
        model_names: names of the model's classes; None: it has none.
        descriptions: other names of the same classes.

    Raises:
        ValueError: no label is a class of the model, or a label names several classes.
    """
    if model_names is None or _are_numbers(source_names):
        return _by_number(source_names, num_classes, model_names)
    for name in source_names:
        count = list(model_names).count(name) or list(descriptions or ()).count(name)
        if count > 1:
            raise ValueError(
                f"the data's class {name!r} is the name of {count} of the model's: --labels FILE gives each a name of "
                "its own, --by-number takes labels by their number"
            )
    known = {name: number for number, name in enumerate(descriptions or ())}
    known |= {name: number for number, name in enumerate(model_names)}
    numbers = np.array([known.get(name, -1) for name in source_names], np.int64)
    strange = [name for name, number in zip(source_names, numbers, strict=True) if number < 0]
    if len(strange) == len(source_names):
        raise ValueError(
            f"none of the data's classes ({_shown(source_names)}) is one of the model's ({_shown(model_names)}); "
            "--labels FILE names the model's classes otherwise, --by-number takes labels by their number"
        )
    notes = []
    if strange:
        notes.append(f"classes that the model does not know are left out: {_shown(strange)}")
    missing = [name for number, name in enumerate(model_names) if number not in set(numbers.tolist())]
    if missing:
        notes.append(
            f"the data have {len(source_names) - len(strange)} of the model's {num_classes:,} classes; the others "
            f"can be predicted, and count as wrong: {_shown(missing)}"
        )
    return Matching(numbers, tuple(notes))


def _by_number(source_names: Sequence[str], num_classes: int, model_names: Sequence[str] | None) -> Matching:
    numbers = np.arange(len(source_names))
    numbers[num_classes:] = -1
    if len(source_names) == num_classes:
        return Matching(numbers, ())
    note = (
        f"labels are taken by number, label 0 ({source_names[0]}) for class 0 and so on: there are "
        f"{len(source_names):,} labels and {num_classes:,} classes, and "
    )
    note += "the labels have no names" if model_names else "the classes have none: --labels FILE gives them names"
    return Matching(numbers, (note,))


def _are_numbers(names: Sequence[str]) -> bool:
    return list(names) == [str(number) for number in range(len(names))]


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
