"""What the TPU compiler makes of a step: `python -m benchmarks.tpu [--models ...] [--topologies v5e:1x1 v6e:1x1]`.

Compiles training step and inference with libtpu for one chip, on a machine without a TPU; nothing is run or timed. One
row for each attention back end and, of ours, each remat. 'FLOPs' are the compiler's count over the model's own (its
matrix products, nothing recomputed). 'Bytes accessed' is the compiler's estimate as well: operands and results of every
operation, also of those that stay on the chip, so it says which of two programs moves less and not how much goes
through the main memory. 'Temporaries' is what the program needs beside its arguments and results. What a Pallas kernel
(splash) does inside is in none of the counts but its operands' bytes. Layers are unrolled, so that the counts are
whole, and cut to the first few (`--depth`), which are all alike: whole models take minutes to compile. Results go to
benchmarks/results/tpu.json, after each compilation; `--add` keeps the other rows that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.results import RESULTS, write

MODELS = ("vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")
BACKENDS = ("xla", "plain", "jax_nn", "splash")
STEPS = ("training", "inference")
REMATS = ("none", "dots_with_no_batch_dims_saveable", "full")


def measure(
    model: str, depth: int, topology: str, batch: int, attention: str, remat: str, training: bool
) -> dict[str, Any]:
    """Returns what the compiler reports for one chip."""
    from vit_flax.plan import topology_devices
    from vit_flax.presets import get_preset
    from vit_flax.train.config import DataConfig, TrainConfig
    from vit_flax.train.flops import training_flops
    from vit_flax.train.lower import abstract_state, compile_eval, lower
    from vit_flax.train.sharding import make_mesh
    from vit_flax.train.step import batch_shapes

    cut = get_preset(model).config.replace(depth=depth)
    data = DataConfig(batch_size=batch)
    config = TrainConfig(model=cut, attention=attention, remat=remat, steps=10, precision="bf16", data=data)
    config = config.resolve(batch)
    mesh = make_mesh(config.mesh, topology_devices(topology))
    row: dict[str, Any] = {"model": model, "depth": depth, "attention": attention, "remat": remat}
    row |= {"topology": topology, "batch": batch, "step": "training" if training else "inference"}
    flops = training_flops(config) * batch / (1 if training else 3)
    started = time.perf_counter()
    compiled: Any
    try:
        if training:
            compiled = lower(config, mesh).compile()
        else:
            shapes = abstract_state(config, mesh).params, batch_shapes(config)
            compiled = compile_eval(config, mesh).lower(*shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        return {**row, "error": str(error).splitlines()[0][:200]}
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        **row,
        "flops over the model's": round(cost["flops"] / flops, 4),
        "bytes accessed": int(cost["bytes accessed"]),
        "temporary bytes": memory.temp_size_in_bytes,
        "compile seconds": round(time.perf_counter() - started, 1),
    }


def cases(options: argparse.Namespace) -> list[tuple[str, int, str, int, str, str, bool]]:
    """Returns the arguments of every `measure`: all back ends without remat, all remats with ours, and inference."""
    found = []
    for topology in options.topologies:
        for model in options.models:
            kinds = []
            if "training" in options.steps:
                kinds += [(attention, "none", True) for attention in options.attention]
                kinds += [(options.attention[0], remat, True) for remat in options.remats if remat != "none"]
            if "inference" in options.steps:
                kinds += [(attention, "none", False) for attention in options.attention]
            found += [(model, options.depth, topology, options.batch, *kind) for kind in kinds]
    return found


def table(result: dict[str, Any]) -> str:
    """Returns the rows as Markdown."""
    lines = [
        f"### What the TPU's compiler reports: bfloat16, batch {result['rows'][0]['batch']}, one chip",
        f"libtpu {result['versions'].get('libtpu')}, on a machine without a TPU: nothing was run or timed; commit "
        f"{result['commit']}. 'Bytes accessed' counts the operands of every operation, also of those that stay on the "
        "chip; what happens inside the kernel of splash is in none of the counts.",
        "",
        "| model | blocks | chip | step | attention | remat | FLOPs / model's | bytes an image | temporaries |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["topology"], row["model"], row["depth"], row["step"])):
        cells = [row["model"], str(row["depth"]), row["topology"], row["step"], row["attention"], row["remat"]]
        if "error" in row:
            cells += [row["error"], "", ""]
        else:
            traffic, ratio = row["bytes accessed"] / row["batch"] / 1e6, row["flops over the model's"]
            cells += [f"{ratio:.3f}", f"{traffic:.0f} MB", f"{row['temporary bytes'] / 1e9:.2f} GB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("topology", "model", "depth", "step", "attention", "remat", "batch"))


def main() -> None:
    """Compiles every combination and writes the results, after each one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--topologies", nargs="+", default=("v5e:1x1", "v6e:1x1"))
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--attention", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--remats", nargs="+", default=REMATS)
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS)
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "tpu.json")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    if options.add and options.output.exists():
        rows = {_key(row): row for row in json.loads(options.output.read_text())["rows"]}
    todo = cases(options)
    for number, case in enumerate(todo, 1):
        row = measure(*case)
        rows[_key(row)] = row
        print(f"{number}/{len(todo)} {json.dumps(row)}", file=sys.stderr, flush=True)
        write(options.output, "tpu", rows=list(rows.values()))


if __name__ == "__main__":
    main()
