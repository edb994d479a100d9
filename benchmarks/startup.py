"""Times imports and compilation before the first step: `python -m benchmarks.startup [--model B] [--repeats 7]`.

Every measurement is a process of its own; repeats are interleaved. Imports are timed by a statement's own process.
Compiling is of the float32 AdamW training step, from shapes alone: nothing is initialised or run. 'trace' is Python's
part (tracing and lowering), 'compile' XLA's. Then the same again in processes that begin as our commands do, with the
persistent compilation cache: once into an empty folder, and once more. 'total' is a process from before its first
import until the step is compiled. Writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cases import MODELS
from benchmarks.results import RESULTS, summarise, write

IMPORTS = (
    "import jax",
    "import flax",
    "import flax.linen",
    "import vit_flax",
    "from vit_flax import create_model",
    "from vit_flax import *",
)
CONTESTANTS = ("vit_flax", "vit_flax scan", "linen", "linen scan")
LIMIT = 0.2  # seconds that importing ours may take longer than importing Flax


def time_step(contestant: str, model: str, batch: int, cached: bool) -> dict[str, float]:
    """Returns the seconds until the training step is compiled, by parts."""
    if "jax" in sys.modules:
        raise RuntimeError("JAX is imported already: neither imports nor the compilation cache can be measured")
    begun = time.perf_counter()
    if cached:
        from vit_flax.cli.startup import set_up_process

        set_up_process()
    import jax
    import jax.numpy as jnp

    from benchmarks.peers.jax_runs import make_train_step

    cfg = MODELS[model]
    name, _, variant = contestant.partition(" ")
    module: Any
    if name == "linen":
        from benchmarks.peers.linen import PlainViT

        module = PlainViT(cfg, None, variant == "scan")
    else:
        from vit_flax.models import build_model

        module = build_model(cfg, scan=variant == "scan")
    optimizer, step = make_train_step(lambda params, images: module.apply({"params": params}, images))
    images = jax.ShapeDtypeStruct((batch, *cfg.image_size, cfg.in_chans), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    imported = time.perf_counter()
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    state = (params, jax.eval_shape(optimizer.init, params))
    shaped = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(state, images, labels)
    traced = time.perf_counter()
    lowered.compile()
    compiled = time.perf_counter()
    return {
        "imports": imported - begun, "shapes": shaped - imported, "trace": traced - shaped,
        "compile": compiled - traced, "total": compiled - begun,
    }  # fmt: skip


def run(arguments: list[str], **variables: str) -> dict[str, float]:
    """Returns the JSON that a new process prints."""
    environment = {**os.environ, "VIT_FLAX_NO_CACHE": "1", **variables}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment,
        cwd=Path(__file__).parent.parent, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr.strip() or done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def time_import(statement: str) -> dict[str, float]:
    """Returns the seconds of a statement in a new process."""
    timed = f"import time; started = time.perf_counter()\n{statement}\nseconds = time.perf_counter() - started"
    return run(["-c", f"{timed}; import json; print(json.dumps({{'seconds': seconds}}))"])


def table(result: dict[str, Any]) -> str:
    """Returns the rows as Markdown."""
    imports, steps = result["imports"], result["steps"]
    over = imports["import vit_flax"]["seconds"]["median"] - imports["import flax"]["seconds"]["median"]
    whole = imports["from vit_flax import create_model"]["seconds"]["median"]
    whole -= imports["import flax.linen"]["seconds"]["median"]
    lines = [
        f"### Start-up: {result['model']}, training step of batch {result['batch']}",
        f"{result['device']}, medians of {result['repeats']} interleaved processes (smallest-largest), seconds, commit "
        f"{result['commit']}. `import vit_flax` is {over:+.2f} s over `import flax` (at most {LIMIT} s wanted), "
        f"everything that a model needs {whole:+.2f} s over `import flax.linen`.",
        "",
        "| | seconds |",
        "|---|---|",
        *(f"| `{statement}` | {_cell(row['seconds'])} |" for statement, row in imports.items()),
        "",
        *_step_table(steps),
    ]
    return "\n".join(lines) + "\n"


def _step_table(steps: dict[str, Any]) -> list[str]:
    rows = [f"| {name} | {' | '.join(_cell(row[part]) for part in row)} |" for name, row in steps.items()]
    return ["| | imports | shapes | trace | compile | total |", "|---|---|---|---|---|---|", *rows]


def _cell(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['low']:.2f}-{value['high']:.2f})"


def main() -> None:
    """Runs every measurement and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="B", choices=MODELS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS / "startup.json")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="NAME",
                        help=f"time compiling of these alone, and print it: {', '.join(CONTESTANTS)}")  # fmt: skip
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        order = json.loads(options.one)
        print(json.dumps(time_step(**order)))
        return
    samples: dict[str, dict[str, list[dict[str, float]]]] = {"imports": {}, "steps": {}}
    for number in range(options.repeats + 1):

        def keep(kind: str, name: str, found: dict[str, float], number: int = number) -> None:
            if number:  # the first round fills the page cache and is not counted
                samples[kind].setdefault(name, []).append(found)

        print(f"round {number} of {options.repeats}", file=sys.stderr, flush=True)
        for statement in () if options.only else IMPORTS:
            keep("imports", statement, time_import(statement))

        def time_compiling(contestant: str, cached: bool, **variables: str) -> dict[str, float]:
            order = {"contestant": contestant, "model": options.model, "batch": options.batch, "cached": cached}
            return run(["-m", "benchmarks.startup", "--one", json.dumps(order)], **variables)

        for contestant in options.only or CONTESTANTS:
            keep("steps", contestant, time_compiling(contestant, False))
        if options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            variables = {"VIT_FLAX_NO_CACHE": "0", "XDG_CACHE_HOME": folder}
            for name in ("vit_flax as a command, empty cache", "vit_flax as a command, second start"):
                keep("steps", name, time_compiling("vit_flax", True, **variables))
    if options.only:
        steps = {name: summarise(rows) for name, rows in samples["steps"].items()}
        print("\n".join(_step_table(steps)))
        return
    settings = {"model": options.model, "batch": options.batch, "repeats": options.repeats}
    found = {kind: {name: summarise(rows) for name, rows in of.items()} for kind, of in samples.items()}
    print(table(write(options.output, "startup", **settings, **found)))


if __name__ == "__main__":
    main()
