"""Named configurations: numbers only, one file a family.

Names are timm's, `architecture` or `architecture.weights`, and those of repositories on the Hugging Face hub,
`owner/name`; the numbers are checked against timm's and transformers' by the tests. PRESETS (vision models) and
TWO_TOWERS (those with a text tower) are built when they are first asked for: some nine hundred configs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_flax.presets.preset import Preset
from vit_flax.suggestions import suggest

if TYPE_CHECKING:
    from vit_flax.presets.tables import PRESETS, TWO_TOWERS

__all__ = ["PRESETS", "REFUSED", "TWO_TOWERS", "Preset", "find_preset", "get_preset"]


_NO_CONVOLUTION = "its tokens come from a convolutional network, which this library does not have"
_NO_GROUPS = (
    "several queries share a key, and LayerScale is after attention alone: this library does not have such a block"
)

# Names of other libraries' models that have no preset here, and the reason.
# fmt: off
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "vit_base_mci_224", "vit_base_r26_s32_224", "vit_base_r50_s16_224", "vit_base_r50_s16_384",
            "vit_base_resnet26d_224", "vit_base_resnet50d_224", "vit_large_r50_s32_224", "vit_large_r50_s32_384",
            "vit_small_r26_s32_224", "vit_small_r26_s32_384", "vit_small_resnet26d_224",
            "vit_small_resnet50d_s16_224", "vit_tiny_r_s16_p8_224", "vit_tiny_r_s16_p8_384",
        ),
        _NO_CONVOLUTION,
    ),
    **dict.fromkeys(
        (
            "vit_base_patch16_sapiens2", "vit_large_patch16_sapiens2", "vit_huge_patch16_sapiens2",
            "vit_giant_patch16_sapiens2", "vit_5b_patch16_sapiens2",
        ),
        _NO_GROUPS,
    ),
}
# fmt: on


def __getattr__(name: str) -> dict[str, Preset]:
    if name not in ("PRESETS", "TWO_TOWERS"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vit_flax.presets import tables

    return getattr(tables, name)


def find_preset(name: str | None) -> Preset | None:
    """Returns the preset of that name, of one tower or both, or None."""
    if name is None:
        return None
    from vit_flax.presets.tables import PRESETS, TWO_TOWERS

    return PRESETS.get(name) or TWO_TOWERS.get(name)


def get_preset(name: str) -> Preset:
    """Returns the preset of that name.

    Raises:
        ValueError: there is none; the reason is given or the nearest names are suggested.
    """
    if found := find_preset(name):
        return found
    if reason := REFUSED.get(name.split(".")[0]):
        raise ValueError(f"no preset {name!r}: {reason}")
    from vit_flax.presets.tables import PRESETS, TWO_TOWERS

    hint = suggest(name, {**PRESETS, **TWO_TOWERS}, "`vit-flax list presets` lists them", count=3)
    raise ValueError(f"no preset named {name!r}; {hint}")
