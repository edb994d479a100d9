"""Memory traffic and bounds of whole models, compiled for TPUs and GPUs: `python -m benchmarks.accelerators`.

Nothing is run or timed, and no device is needed. Every contestant is the same computation: uint8 images normalised, the
logits (forward) or loss, gradients and an SGD update (training), products in bfloat16, parameters in float32, one chip.
'accessed' is the compiler's own 'bytes accessed' (TPU; a loop's body once), 'bytes' all that operations read and write,
'HBM' those in the device's memory, 'bound' the least time at the published rates, as `vit-flax plan` counts them.
'HBM / peer' and 'bound / peer' are over the best peer of the same form, unrolled or scanned. Rows go to
benchmarks/results/accelerators.json one by one; `--add` compiles only what is not there yet.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from benchmarks.accelerator_contestants import CONTESTANTS, IS_OURS, apply_of, is_scanned, runs_on
from benchmarks.cases import MODELS
from benchmarks.compiled import measure, one_chip, write_rows
from benchmarks.results import RESULTS

BATCHES = {"S": 64, "B": 64, "L": 32, "B384": 32, "L518": 8}
CHIPS = {"v5e": "v5e:1x1", "v6e": "v6e:1x1", "v5p": "v5p:2x2x1", "h100": "h100:1"}  # of v5p there is no single chip
MODES = ("training", "forward")
OUTPUT = RESULTS / "accelerators.json"
KEY = ("model", "depth", "batch", "mode", "chip", "contestant")


def compile_case(model: str, depth: int | None, batch: int, mode: str, topology: str, contestant: str) -> Any:
    """Returns the compiled program of a contestant for one chip."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vit_flax.plan.targets import compiler_options

    config = MODELS[model] if depth is None else MODELS[model].replace(depth=depth)
    apply, init = apply_of(contestant, config)
    shape = (*config.image_size, config.in_chans)
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    params = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

    def logits_of(params: Any, images: Any) -> Any:
        return apply(
            params, (images.astype(jnp.float32) / 255 - mean[: config.in_chans]) / std[: config.in_chans]
        ).astype(jnp.float32)

    def loss_of(params: Any, images: Any, labels: Any) -> Any:
        logits = logits_of(params, images)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

    def step(params: Any, images: Any, labels: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, images, labels)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradients), loss

    with one_chip(topology) as alone:
        if mode == "training":
            lowered = jax.jit(step, in_shardings=alone, donate_argnums=0).lower(params, images, labels)
        else:
            lowered = jax.jit(logits_of, in_shardings=alone).lower(params, images)
    return lowered.compile(compiler_options(topology))


def measure_case(model: str, depth: int | None, batch: int, mode: str, chip: str, contestant: str) -> dict[str, Any]:
    """Returns one row; its 'error' where the program cannot be compiled."""
    row: dict[str, Any] = dict(zip(KEY, (model, depth, batch, mode, chip, contestant), strict=True))
    topology = CHIPS[chip]
    return measure(row, topology, lambda: (compile_case(model, depth, batch, mode, topology, contestant), {}))


def table(result: dict[str, Any]) -> str:
    """Returns the rows as Markdown."""
    versions = result["versions"]
    lines = [
        "### Accelerators: what the compilers make of whole models",
        f"bfloat16, one chip, nothing run or timed; libtpu {versions.get('libtpu')}, jax {versions.get('jax')}; commit "
        "of each row in the file. GB of a step; 'accessed' is the compiler's count, 'HBM' crosses the chip's memory, "
        "the bound is at published rates; 'peer' is the best of linen and big_vision's way in the same form.",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault(tuple(row[name] for name in KEY[:-1]), []).append(row)
    for (model, depth, batch, mode, chip), rows in sorted(groups.items(), key=lambda item: _order(item[0])):
        cut = "" if depth is None else f", {depth} blocks"
        lines += [
            "",
            f"**{model}{cut}, batch {batch}, {mode}, {chip}**",
            "",
            "| | accessed | bytes | HBM | temporaries | TFLOP | bound ms | HBM / peer | bound / peer | compile s |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_cells(row, rows) for row in sorted(rows, key=lambda row: list(CONTESTANTS).index(row["contestant"]))]
    return "\n".join(lines) + "\n"


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    model, depth, batch, mode, chip = key
    return list(CHIPS).index(chip), list(BATCHES).index(model), depth or 99, batch, MODES.index(mode)


def _cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    if "error" in row:
        return f"| {row['contestant']} | {row['error']} | | | | | | | | |"
    scanned = is_scanned(row["contestant"])
    peers = [
        r
        for r in rows
        if "error" not in r and r["contestant"] not in IS_OURS and is_scanned(r["contestant"]) == scanned
    ]

    def ratio(name: str) -> str:
        best = min((peer[name] for peer in peers), default=math.nan)
        return f"{row[name] / best:.2f}" if peers else ""

    accessed = "" if row["accessed"] is None else f"{row['accessed'] / 1e9:.1f}"
    sizes = [f"{row[name] / 1e9:.2f}" for name in ("bytes", "device_bytes", "temporary_bytes")]
    flops = f"{row['flops'] / 1e12:.2f}" + ("+" if row["uncounted"] else "")
    cells = [row["contestant"], accessed, *sizes, flops, f"{row['bound_seconds'] * 1e3:.2f}"]
    return f"| {' | '.join([*cells, ratio('device_bytes'), ratio('bound_seconds'), str(row['compile_seconds'])])} |"


def main() -> None:
    """Compiles every case that is asked for and writes the results, after each one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(BATCHES), choices=BATCHES)
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), choices=CHIPS)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--depth", type=int, help="blocks; the model's own if not given")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--add", action="store_true", help="keep the rows that are there, and compile the others")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    todo = [
        (model, options.depth, options.batch or BATCHES[model], mode, chip, contestant)
        for model in options.models for chip in options.chips for mode in options.modes
        for contestant in options.contestants if runs_on(contestant, chip)
    ]  # fmt: skip
    write_rows("accelerators", options.output, KEY, todo, measure_case, options.add)


if __name__ == "__main__":
    main()
