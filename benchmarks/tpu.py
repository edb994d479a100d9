"""What the TPU compiler makes of a step: `python -m benchmarks.tpu [--models ...] [--topologies v5e:1x1 v6e:1x1]`.

Compiles training step and inference with libtpu, on a machine without a TPU: operations against the model's own, bytes
to and from main memory, temporaries. Nothing is timed. One row for each formulation of attention and each remat; layers
are unrolled, so that the compiler's own counts are whole. Results go to benchmarks/results/tpu.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.environment import describe

RESULTS = Path(__file__).parent / "results"
MODELS = ("vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")
FORMULATIONS = ("late", "plain", "jax.nn")


def plain(q: Any, k: Any, v: Any, scale: float, precision: Any) -> Any:
    """Computes attention as it is usually written, softmax before the product with the values."""
    logits = jnp.einsum("bhqe,bhke->bhqk", q * scale, k, preferred_element_type=jnp.float32, precision=precision)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bhke->bhqe", weights, v, preferred_element_type=jnp.float32, precision=precision)


def jax_nn(q: Any, k: Any, v: Any, scale: float, precision: Any) -> Any:
    """Computes attention by jax.nn.dot_product_attention."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, scale=scale).transpose(0, 2, 1, 3)


@contextmanager
def formulated(name: str) -> Iterator[None]:
    """Makes models traced inside compute attention by one formulation."""
    from vit_flax.models import attention

    own = attention.dot_product_attention
    attention.dot_product_attention = {"late": own, "plain": plain, "jax.nn": jax_nn}[name]  # pyright: ignore
    try:
        yield
    finally:
        attention.dot_product_attention = own


def measure(model: str, topology: str, batch: int, formulation: str, remat: str, training: bool) -> dict[str, Any]:
    """Returns what the compiler reports for one chip."""
    from vit_flax.plan import topology_devices
    from vit_flax.train.config import TrainConfig
    from vit_flax.train.flops import training_flops
    from vit_flax.train.lower import abstract_state, compile_eval, lower
    from vit_flax.train.sharding import make_mesh
    from vit_flax.train.step import batch_shapes

    config = TrainConfig(model=model, steps=10, precision="bf16", remat=remat, data={"batch_size": batch})  # pyright: ignore
    config = config.resolve(batch)
    mesh = make_mesh(config.mesh, topology_devices(topology))
    row = {"model": model, "topology": topology, "batch": batch, "step": "training" if training else "inference"}
    row |= {"attention": formulation, "remat": remat}
    flops = training_flops(config) * batch // (1 if training else 3)
    compiled: Any
    try:
        with formulated(formulation):
            if training:
                compiled = lower(config, mesh).compile()
            else:
                compiled = (
                    compile_eval(config, mesh)
                    .lower(abstract_state(config, mesh).params, batch_shapes(config))
                    .compile()
                )
    except jax.errors.JaxRuntimeError as error:
        return {**row, "error": str(error).splitlines()[0][:200]}
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        **row,
        "flops over the model's": round(cost["flops"] / flops, 4),
        "bytes accessed": int(cost["bytes accessed"]),
        "temporary bytes": memory.temp_size_in_bytes,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as markdown."""
    lines = [
        "The report of the TPU's compiler for one chip, on a machine without a TPU: nothing was run or timed. 'Bytes "
        "accessed' is the compiler's estimate, which also counts what stays on the chip.",
        "",
        "| model | chip | step | attention | remat | FLOPs / model's | bytes accessed an image | temporaries |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["model"], row["topology"], row["step"], row["attention"], row["remat"]]
        if "error" in row:
            cells += [row["error"], "", ""]
        else:
            traffic, ratio = row["bytes accessed"] / row["batch"] / 1e6, row["flops over the model's"]
            cells += [f"{ratio:.3f}", f"{traffic:.0f} MB", f"{row['temporary bytes'] / 1e9:.2f} GB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compiles every combination and writes the results, after each one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--topologies", nargs="+", default=("v5e:1x1", "v6e:1x1"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--attention", nargs="+", default=FORMULATIONS, choices=FORMULATIONS)
    parser.add_argument("--remats", nargs="+", default=("none", "full"))
    parser.add_argument("--output", type=Path, default=RESULTS / "tpu.json")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    cases = [
        (model, topology, options.batch, attention, remat, training)
        for topology in options.topologies
        for model in options.models
        for attention in options.attention
        for training in (True, False)
        for remat in (options.remats if training else ("none",))
    ]
    rows = []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases, 1):
        rows.append(measure(*case))
        print(f"{number}/{len(cases)} {json.dumps(rows[-1])}", file=sys.stderr, flush=True)
        options.output.write_text(json.dumps({"benchmark": "tpu", **describe(), "rows": rows}, indent=1) + "\n")
        options.output.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
