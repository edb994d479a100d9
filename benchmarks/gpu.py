"""All that needs a GPU, in one command: `make gpu`, or `python -m benchmarks.gpu`.

1. The parity suite with JAX on the GPU. 2. Races of inference and training in bfloat16 against stock linen, equimo and
timm in torch (eager and torch.compile, scaled_dot_product_attention). 3. Training steps measured, beside the bound of
`vit-flax plan` without the device and that of the program compiled on it; to benchmarks/results/gpu.json.
Exit status: 0 done, 1 a test failed, 2 there is no GPU. `--predict CHIP` prints predictions alone, which needs none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, write

MODELS = {"vit_small_patch16_224": 64, "vit_base_patch16_224": 64, "vit_large_patch16_224": 32}  # images a step
RACED = ("vit_flax", "linen", "linen_scan", "equimo", "torch", "torch_compile", "matmul_jax")
RACES = ("inference", "train_step")
ROOT = Path(__file__).parent.parent
STEPS = 20


def find_gpu() -> tuple[Any, str]:
    """Returns JAX's first GPU and its name in `vit_flax.plan.CHIPS`.

    Raises:
        ValueError: JAX has none, or vit_flax/chips.py has no figures of it.
    """
    import jax

    from vit_flax.plan import CHIPS

    try:
        device = jax.devices("gpu")[0]
    except RuntimeError as error:
        told = str(error).splitlines()[0]
        raise ValueError(
            f"JAX has no GPU here ({told}): on a machine with one, pip install 'vit-linen[cuda]'"
        ) from None
    words = device.device_kind.lower().replace("-", " ").split()
    names = [name for name in CHIPS if name in words]
    if not names:
        raise ValueError(f"nothing is published here of a {device.device_kind}: add it to vit_flax/chips.py")
    return device, names[0]


def step_config(model: str, batch: int) -> Any:
    """Returns the training config whose step is predicted and measured: AdamW, bfloat16, layers unrolled."""
    from vit_flax.presets import get_preset
    from vit_flax.train.config import DataConfig, TrainConfig

    config = get_preset(model).config
    config = config if config.num_classes else config.replace(num_classes=1000)
    made = TrainConfig(model=config, steps=1000, precision="bf16", data=DataConfig(batch_size=batch))
    return made.resolve(batch)


def predict(config: Any, chip: str) -> dict[str, float]:
    """Returns the plan's bound, bytes and MFU for one such chip, compiled without it."""
    from vit_flax.plan.planning import plan, planned

    made = plan(planned(config, f"{chip}:1"), f"{chip}:1")
    if made.step_seconds is None or made.device_bytes is None:
        raise ValueError(f"the step does not fit one {chip}: {made.missing_bytes / 1e9:.1f} GB too much")
    return {"seconds": made.step_seconds, "bytes": made.device_bytes, "mfu": made.mfu or 0.0}


def measure(config: Any, device: Any, steps: int = STEPS) -> tuple[float, Any]:
    """Returns the median seconds of a training step on a device, each blocked on, and the compiled program."""
    import jax
    import numpy as np

    from vit_flax.train.compilation import create_state, lower_step
    from vit_flax.train.sharding import make_mesh, place_batch

    mesh = make_mesh(config.mesh, [device])
    size, rng = config.data.batch_size, np.random.default_rng(0)
    shape = (size, *config.image_size, config.model.in_chans)
    images, labels = rng.integers(0, 256, shape, np.uint8), rng.integers(0, config.model.num_classes, size, np.int32)
    batch, state = place_batch({"image": images, "label": labels}, mesh), create_state(config, mesh)
    compiled, seconds = lower_step(config, mesh).compile(), []
    for _ in range(steps + 3):  # the first three warm up
        started = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[3:]), compiled


def compare(config: Any, device: Any, chip: str) -> dict[str, Any]:
    """Returns one row: predicted without the device, counted in the program compiled on it, measured."""
    from vit_flax.chips import CHIPS
    from vit_flax.plan.costs import costs
    from vit_flax.plan.hlo import Program
    from vit_flax.train.flops import training_flops

    predicted = predict(config, chip)
    seconds, compiled = measure(config, device)
    counted = costs(Program(compiled.as_text()), CHIPS[chip])
    model_flops = training_flops(config) * config.data.batch_size
    return {
        "batch": config.data.batch_size,
        "predicted_seconds": predicted["seconds"],
        "predicted_bytes": predicted["bytes"],
        "counted_seconds": counted.seconds,
        "counted_bytes": counted.device_bytes,
        "measured_seconds": seconds,
        "mfu": model_flops / CHIPS[chip].flops / seconds,
    }


def table(result: dict[str, Any]) -> str:
    """Returns the rows as Markdown."""
    lines = [
        "### Training steps on a GPU: predicted and measured",
        f"{result['device']}, bfloat16, AdamW; commit {result['commit']}. 'Counted' is what is compiled on the device.",
        "",
        "| model | batch | predicted ms | counted ms | measured ms | measured / predicted | MFU |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, row in result["rows"].items():
        times = [row[f"{name}_seconds"] for name in ("predicted", "counted", "measured")]
        cells = [model, str(row["batch"]), *(f"{seconds * 1e3:.2f}" for seconds in times)]
        lines.append(f"| {' | '.join(cells)} | {times[2] / times[0]:.2f} | {row['mfu']:.1%} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Runs the three parts, or the predictions alone, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--predict", metavar="CHIP", help="a100, h100, h200 or b200: print what the plan says, no more")
    options = parser.parse_args(arguments)
    try:
        if options.predict:
            for model in options.models:
                print(model, json.dumps(predict(step_config(model, MODELS[model]), options.predict)), flush=True)
            return 0
        device, chip = find_gpu()
    except (ValueError, ImportError) as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    environment = {**os.environ, "JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "parity_tests", "vit_flax/models", "-q"], env=environment, cwd=ROOT
    )
    for mode in RACES:
        command = [sys.executable, "-m", f"benchmarks.{mode}", "--models", "S", "B", "--batches", "64", "--precisions"]
        subprocess.run([*command, "bfloat16", "--only", *RACED], env=environment, cwd=ROOT, check=True)
    rows = {model: compare(step_config(model, MODELS[model]), device, chip) for model in options.models}
    print(table(write(RESULTS / "gpu.json", "gpu", rows=rows)))
    return 1 if tested.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
