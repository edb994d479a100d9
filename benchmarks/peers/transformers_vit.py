"""Hugging Face's ViTForImageClassification in torch. Variants: '' SDPA, 'compile' torch.compile."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import Job, Prepared
from benchmarks.peers.torch_timm import run_torch

SETTINGS = "transformers, attn_implementation='sdpa', inference_mode; bfloat16: torch.autocast"


def prepare(job: Job) -> Prepared:
    """Builds the model from the weights and runs it once."""
    import torch

    import vit_flax
    from benchmarks.peers.torchvision_operators import declare

    declare()
    from transformers import ViTConfig, ViTForImageClassification

    cfg = job.case.config
    ours, params = vit_flax.load(job.weights, "timm", cfg)
    more: dict[str, Any] = {"num_labels": cfg.num_classes, "attn_implementation": "sdpa"}
    model = ViTForImageClassification(
        ViTConfig(
            image_size=cfg.image_size[0], patch_size=cfg.patch_size[0], num_channels=cfg.in_chans,
            hidden_size=cfg.embed_dim, num_hidden_layers=cfg.depth, num_attention_heads=cfg.num_heads,
            intermediate_size=cfg.mlp_dim, layer_norm_eps=1e-6, **more,
        )
    )  # fmt: skip
    tensors = vit_flax.to_state_dict(ours, params, "huggingface_vit_memory")
    model.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> Any:
            return self.model(images).logits

    return run_torch(job, Logits())
