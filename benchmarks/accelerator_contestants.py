"""The contestants of `benchmarks.accelerators`: ours by attention back end and form, and two other implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vit_flax.config import ViTConfig

# ours: arguments of `vit_flax.create_model` and `attention_backend`
IS_OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, xla": {"attention": "xla"},
    "ours, stored": {"attention": "stored"},
    "ours, plain": {"attention": "plain"},
    "ours, jax_nn": {"attention": "jax_nn"},
    "ours, splash": {"attention": "splash"},
    "ours, cudnn": {"attention": "cudnn"},
    "ours, scanned": {"scan": True},
    "ours, scanned, remat": {"scan": True, "remat": "full"},
}
PEERS: dict[str, dict[str, Any]] = {
    "linen": {"scan": False},
    "linen, scanned": {"scan": True},
    "big_vision's way": {"scan": False, "remat": False},
    "big_vision's way, scanned": {"scan": True, "remat": False},
    "big_vision's way, scanned, remat": {"scan": True, "remat": True},
}
CONTESTANTS = {**IS_OURS, **PEERS}


def is_scanned(contestant: str) -> bool:
    """Returns whether a contestant's layers are a scan."""
    return bool(CONTESTANTS[contestant].get("scan"))


def runs_on(contestant: str, chip: str) -> bool:
    """Returns whether a contestant's kernels run on a chip: splash is for TPUs, cuDNN for GPUs."""
    only = {"splash": "v", "cudnn": "h"}.get(CONTESTANTS[contestant].get("attention", ""))
    return only is None or chip.startswith(only)


def apply_of(contestant: str, config: ViTConfig) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns (params, images) -> logits and (key, images) -> params, products in bfloat16."""
    import jax.numpy as jnp

    from benchmarks.peers.big_vision_way import BigVisionViT
    from benchmarks.peers.linen import PlainViT
    from vit_flax.models import attention_backend, build_model

    how = dict(CONTESTANTS[contestant])
    if contestant not in IS_OURS:
        model: Any = (PlainViT if contestant.startswith("linen") else BigVisionViT)(config, jnp.bfloat16, **how)
        return lambda params, images: model.apply({"params": params}, images), _init(model)
    attention = how.pop("attention", "auto")
    ours = build_model(config, dtype=jnp.bfloat16, **how)

    def apply(params: Any, images: Any) -> Any:
        with attention_backend(attention):
            return ours.apply({"params": params}, images)

    return apply, _init(build_model(config))


def _init(model: Any) -> Callable[..., Any]:
    return lambda key, images: model.init(key, images)["params"]
