"""Imports of timm, transformers and other libraries that checkpoints are compared with."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

_SUPPRESSION = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_peer(library: str) -> ModuleType:
    """Imports timm, transformers or another library, with whichever build of torchvision is installed.

    Raises:
        ImportError: the library is not installed or its import fails; the message is one line.
    """
    try:
        _declare_operators()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of another library's import are not about the caller's code
            return importlib.import_module(library)
    except Exception as error:  # a broken build may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise ImportError(f"comparing with {library} needs it: pip install {library}") from error
        raise ImportError(f"comparing with {library} needs it, and it cannot be imported: {reason}") from error


@functools.cache
def _declare_operators() -> object:
    """Declares torchvision's operators where its compiled library cannot be loaded: a CUDA wheel beside a CPU torch.

    Such a torchvision registers fake kernels of operators that do not exist, and its import fails. No ViT calls them.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("torch") is None:
        return None
    import torch

    for built in Path(next(iter(spec.submodule_search_locations))).glob("_C*.*"):
        try:
            torch.ops.load_library(str(built))
            return None
        except OSError:
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + _SUPPRESSION)
    return library  # the declarations last as long as this object
