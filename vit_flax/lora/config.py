"""The config of LoRA adapters."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from vit_flax.config.checks import require_choice, require_int, require_number

ALL_LINEAR = "all-linear"
BIASES = ("none", "all", "lora_only")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The layers with adapters, their ranks, and the other trained parameters; all others are frozen.

    Patterns are regular expressions for a layer's path or its end after a slash: 'qkv' is every layer of that name,
    'blocks_1[01]/mlp/fc2' those of two blocks. The parts of a fused layer are named beside it: 'q', 'k', 'v' (and 'kv')
    of `qkv`, 'gate' and 'value' of a gated `fc1`; where a pattern matches both, the whole layer is taken. Several
    patterns may be one comma-separated string.

    Reference: peft.LoraConfig: lora_alpha is `alpha`, r `rank`, use_rslora `rslora`, rank_pattern and alpha_pattern
    `ranks` and `alphas`.
    """

    targets: tuple[str, ...] | str = ("q", "v")  # or 'all-linear': every linear layer but patch embedding and heads
    exclude: tuple[str, ...] | str = ()  # patterns of targets to leave out
    rank: int = 8
    alpha: float = 8.0  # the product is multiplied by alpha / rank
    ranks: tuple[tuple[str, int], ...] = ()  # (pattern, rank) of targets with another rank; the first match counts
    alphas: tuple[tuple[str, float], ...] = ()  # likewise
    rslora: bool = False  # by alpha / sqrt(rank) instead: arXiv 2312.03732
    dropout: float = 0.0  # dropout of an adapter's input in training
    bias: str = "none"  # which biases are trained, one of BIASES; 'lora_only': those of the targets
    modules_to_save: tuple[str, ...] | str = ("head(_dist)?",)  # patterns of modules that are trained in full

    def __post_init__(self) -> None:
        """Checks every value."""
        for name in ("targets", "exclude", "modules_to_save"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        if not self.targets:
            raise ValueError("lora.targets names no layer; 'all-linear' stands for all")
        for name in ("ranks", "alphas"):
            object.__setattr__(self, name, _rules(name, getattr(self, name)))
        for rank in (self.rank, *(rank for _, rank in self.ranks)):
            require_int("lora.rank", rank, 1)
        require_choice("lora.bias", self.bias, BIASES)
        numbers = [("alpha", alpha) for _, alpha in self.alphas]
        for name, value in (*numbers, ("alpha", self.alpha), ("dropout", self.dropout)):
            require_number(f"lora.{name}", value)
        if self.dropout >= 1:
            raise ValueError(f"lora.dropout must be less than 1, got {self.dropout!r}")
        if not isinstance(self.rslora, bool):
            raise ValueError(f"lora.rslora must be True or False, got {self.rslora!r}")

    def rank_of(self, name: str) -> int:
        """Returns the rank of the adapter `name`."""
        return next((rank for pattern, rank in self.ranks if matches(pattern, name)), self.rank)

    def scale(self, name: str, rank: int) -> float:
        """Returns the scale of an adapter's product: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
        alpha = next((alpha for pattern, alpha in self.alphas if matches(pattern, name)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def matches(pattern: str, name: str) -> bool:
    """Returns whether a pattern matches a name, or its end after a slash."""
    return re.fullmatch(rf"(.*/)?({pattern})", name) is not None


def _rules(name: str, value: object) -> tuple[tuple[str, Any], ...]:
    rules = value if isinstance(value, tuple | list) else ()
    if rules != value or not all(isinstance(rule, tuple | list) and len(rule) == 2 for rule in rules):
        raise ValueError(f"lora.{name} must be (pattern, value) pairs, got {value!r}")
    return tuple((_patterns(name, (pattern,))[0], number) for pattern, number in rules)


def _patterns(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        # not inside brackets, where a comma belongs to the regular expression
        value = re.split(r",(?![^({\[]*[)}\]])", value) if value else ()
    if not isinstance(value, tuple | list) or not all(isinstance(pattern, str) for pattern in value):
        raise ValueError(f"lora.{name} must be patterns of layers, got {value!r}")
    return tuple(pattern.strip() for pattern in value)
