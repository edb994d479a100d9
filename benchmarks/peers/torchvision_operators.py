"""Lets torchvision, which timm imports, load beside a CPU build of torch."""

from __future__ import annotations

import functools


@functools.cache
def declare() -> object:
    """Declares the operators whose absence stops the import of a CUDA wheel; models do not use them."""
    import torch

    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # the declarations last as long as this object
