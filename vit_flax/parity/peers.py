"""Imports of the libraries that checkpoints are compared with."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

_SUPPRESSION = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_peer(library: str) -> ModuleType:
    """Returns timm, transformers or another library that may import torchvision, whichever build of that there is.

    Raises:
        ImportError: the library is not installed, or cannot be imported; one line.
    """
    try:
        _declare_operators()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library warns of while it loads is not ours to mend
            return importlib.import_module(library)
    except Exception as error:  # a broken build raises whatever it likes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise ImportError(f"comparing with {library} needs it: pip install {library}") from error
        raise ImportError(f"comparing with {library} needs it, and it cannot be imported: {reason}") from error


@functools.cache
def _declare_operators() -> object:
    """Declares the operators of torchvision where its own cannot be loaded, as a CUDA wheel's beside a CPU torch.

    Such a torchvision describes operators that nothing defines, which fails its import. No ViT calls any of them.
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
