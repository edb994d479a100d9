"""The libraries that conversion is judged against, imported as `vit-flax compare` imports them."""

from __future__ import annotations

from types import ModuleType

from vit_flax.parity.peers import import_peer


def import_torchvision() -> ModuleType:
    """Returns torchvision, whichever build of it is installed."""
    return import_peer("torchvision")


def import_timm() -> ModuleType:
    """Returns timm."""
    return import_peer("timm")


def import_transformers() -> ModuleType:
    """Returns transformers."""
    return import_peer("transformers")


def import_vit_pytorch() -> ModuleType:
    """Returns vit_pytorch."""
    return import_peer("vit_pytorch")
