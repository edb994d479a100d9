"""Imports of the libraries that conversion is judged against.

A torchvision built for CUDA cannot load its operators beside a CPU build of torch, and then fails to import at all
because it describes them. Declaring their names is enough: no ViT calls any of them.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType

_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def _declare_operators() -> tuple[object, ...]:
    import torch

    libraries = []
    for name, signature in _OPERATORS.items():
        library = torch.library.Library("torchvision", "FRAGMENT")
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + signature)
        libraries.append(library)
    return tuple(libraries)  # the declarations last as long as these objects


def _import(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library warns of while it loads is not ours to mend
        return importlib.import_module(name)


def import_torchvision() -> ModuleType:
    """Returns torchvision, whichever build of it is installed."""
    _declare_operators()
    return _import("torchvision")


def import_timm() -> ModuleType:
    """Returns timm."""
    import_torchvision()
    return _import("timm")


def import_transformers() -> ModuleType:
    """Returns transformers."""
    import_torchvision()
    return _import("transformers")


def import_vit_pytorch() -> ModuleType:
    """Returns vit_pytorch."""
    import_torchvision()
    return _import("vit_pytorch")
