"""timm's VisionTransformer in torch. Variants: '' eager, 'compile' torch.compile; scaled_dot_product_attention in both.

timm's modules are torch's own layers, so this is both 'torch eager' and 'timm'.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.peers import Job, Prepared
from benchmarks.peers.jax_runs import LEARNING_RATE, WEIGHT_DECAY

SETTINGS = "timm, fused attention, inference_mode; AdamW(foreach); bfloat16: torch.autocast"


def build(job: Job) -> Any:
    """Returns timm's model with the weights."""
    import torch
    from safetensors.torch import load_file

    from benchmarks.peers.torchvision_operators import declare

    declare()
    from timm.models.vision_transformer import VisionTransformer

    cfg = job.case.config
    pool: Any = cfg.global_pool
    with torch.device("cpu"):
        model = VisionTransformer(
            img_size=cfg.image_size, patch_size=cfg.patch_size[0], in_chans=cfg.in_chans, embed_dim=cfg.embed_dim,
            depth=cfg.depth, num_heads=cfg.num_heads, num_classes=cfg.num_classes, mlp_ratio=cfg.mlp_ratio,
            class_token=cfg.class_token, global_pool=pool, fc_norm=cfg.fc_norm,
        )  # fmt: skip
    model.load_state_dict(load_file(job.weights))
    return model


def prepare(job: Job) -> Prepared:
    """Builds the model from the weights and runs it once."""
    return run_torch(job, build(job))


def run_torch(job: Job, model: Any) -> Prepared:
    """Times a torch model of NCHW images that returns logits."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    images = torch.tensor(job.images).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.tensor(job.labels, dtype=torch.long, device=device)
    cast = torch.autocast(device, torch.bfloat16, enabled=job.case.precision == "bfloat16")
    started = time.perf_counter()
    compiled = torch.compile(model) if job.variant == "compile" else model

    def finish(value: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return value

    if job.case.mode == "inference":
        model.eval()

        def run() -> Any:
            with torch.inference_mode(), cast:
                return finish(compiled(images))

        outputs = run().float().cpu().numpy()
    elif job.case.mode == "features":
        model.eval()
        asked = {"indices": list(job.case.layers), "stop_early": True, "intermediates_only": True}

        def run() -> Any:
            with torch.inference_mode(), cast:
                return finish(model.forward_intermediates(images, **asked))

        outputs = np.stack([grid.permute(0, 2, 3, 1).float().cpu().numpy() for grid in run()])
    else:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=True)

        def run() -> Any:
            with cast:
                logits = compiled(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return finish(loss.detach())

        outputs = np.asarray([run().item() for _ in range(3)], np.float32)
    return Prepared(run, outputs, time.perf_counter() - started, {"threads": torch.get_num_threads()})
