"""Measures the memory of training with adapters: ours and peft's, each beside its own full fine-tuning.

`python -m benchmarks.lora [--model B] [--batch 8] [--rank 8]` writes benchmarks/results/lora.json. Every measurement is
a process of its own that takes two AdamW steps on the CPU. 'peak' is the peak resident memory over that before the
model was built; 'optimiser' the bytes of the moments; 'compiled' the bytes of our compiled step: arguments, results and
temporaries, donated buffers counted once. `saved` is full fine-tuning less adapters, `frozen_optimiser` the least that
adapters must save: the moments of the frozen parameters.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.cases import MODELS
from benchmarks.convert import measure
from benchmarks.results import RESULTS, write

KINDS = ("vit_flax full", "vit_flax lora", "torch full", "torch peft")


def ours(model: str, batch: int, rank: int, lora: bool) -> dict[str, float]:
    """Returns the figures of our training step."""
    import jax
    import numpy as np

    from vit_flax.lora.config import LoraConfig
    from vit_flax.train.compilation import abstract_state, compile_step, create_state, lower_step
    from vit_flax.train.config import DataConfig, MeshConfig, TrainConfig
    from vit_flax.train.sharding import make_mesh

    adapters = LoraConfig(rank=rank, targets="q,v") if lora else None
    channels = MODELS[model].in_chans
    data = DataConfig(batch_size=batch, mean=(0.5,) * channels, std=(0.5,) * channels)
    config = TrainConfig(model=MODELS[model], data=data, steps=2, lora=adapters).resolve(batch)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    memory: Any = lower_step(config, mesh).compile().memory_analysis()
    compiled = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    state = abstract_state(config, mesh)
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731
    frozen = size(state.frozen) if lora else 0
    images = np.zeros((batch, *config.image_size, channels), np.uint8)
    rows = {"image": images, "label": np.zeros(batch, np.int32)}
    step = compile_step(config, mesh)

    def work() -> Any:
        state, scalars = create_state(config, mesh), None
        for _ in range(2):
            state, scalars = step(state, rows)
        return jax.block_until_ready(scalars)

    return {
        "peak": measure(work)["peak_growth_bytes"],
        "compiled": compiled - memory.alias_size_in_bytes,
        "optimiser": size(state.opt_state),
        "frozen_optimiser": 2 * frozen,
    }


def torchs(model: str, batch: int, rank: int, lora: bool) -> dict[str, float]:
    """Returns the figures of transformers' ViT in torch, with peft's adapters or without."""
    import torch

    from vit_flax.parity.peers import import_peer

    transformers, peft, cfg = import_peer("transformers"), import_peer("peft"), MODELS[model]
    config = transformers.ViTConfig(
        hidden_size=cfg.embed_dim, num_hidden_layers=cfg.depth, num_attention_heads=cfg.num_heads,
        intermediate_size=cfg.mlp_dim, image_size=cfg.image_size[0], patch_size=cfg.patch_size[0],
        num_channels=cfg.in_chans, num_labels=cfg.num_classes,
    )  # fmt: skip
    found: dict[str, float] = {}

    def work() -> Any:
        module = transformers.ViTForImageClassification(config)
        if lora:
            options: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
            module = peft.get_peft_model(module, peft.LoraConfig(r=rank, **options))
        optimizer = torch.optim.AdamW(parameter for parameter in module.parameters() if parameter.requires_grad)
        images, labels = torch.zeros(batch, cfg.in_chans, *cfg.image_size), torch.zeros(batch, dtype=torch.long)
        loss: Any = None
        for _ in range(2):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(images).logits, labels)
            loss.backward()
            optimizer.step()
        moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        found["optimiser"] = sum(moment.numel() * moment.element_size() for moment in moments)
        return loss

    return {"peak": measure(work)["peak_growth_bytes"], **found}


def table(result: dict[str, Any]) -> str:
    """Returns every kind's memory as a Markdown table, in megabytes."""
    lines = [
        f"### Adapters of rank {result['rank']} on {result['model']}, batch {result['batch']}",
        f"{result['device']}, commit {result['commit']}, two AdamW steps in float32 on the CPU; MB. The moments of the "
        f"frozen parameters would be {result['saved']['frozen_optimiser'] / 1e6:,.1f}.",
        "",
        "| | peak of the process | the compiled step needs | moments of the optimiser |",
        "|---|---|---|---|",
    ]
    for kind, row in result["figures"].items():
        cells = [f"{row[name] / 1e6:,.1f}" if name in row else "" for name in ("peak", "compiled", "optimiser")]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures all kinds and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="B")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dry", action="store_true", help="write no result")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        work = ours if options.kind.startswith("vit_flax") else torchs
        print(json.dumps(work(options.model, options.batch, options.rank, not options.kind.endswith("full"))))
        return
    command = [sys.executable, "-m", "benchmarks.lora", "--model", options.model, "--batch", str(options.batch)]
    figures: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        done = subprocess.run(
            [*command, "--rank", str(options.rank), "--kind", kind], stdout=subprocess.PIPE, text=True, check=True
        )
        figures[kind] = json.loads(done.stdout.splitlines()[-1])
        print(kind, {name: f"{value / 1e6:,.1f} MB" for name, value in figures[kind].items()}, flush=True)
    saved = {name: figures["vit_flax full"][name] - figures["vit_flax lora"][name] for name in ("peak", "compiled")}
    saved["frozen_optimiser"] = figures["vit_flax lora"]["frozen_optimiser"]
    saved["torch_peak"] = figures["torch full"]["peak"] - figures["torch peft"]["peak"]
    print("saved", {name: f"{value / 1e6:,.1f} MB" for name, value in saved.items()})
    if not options.dry:
        given = {"model": options.model, "batch": options.batch, "rank": options.rank}
        write(RESULTS / "lora.json", "lora", **given, figures=figures, saved=saved)


if __name__ == "__main__":
    main()
