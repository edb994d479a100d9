"""What the compilers of a TPU and a GPU make of attention by each back end: `python -m benchmarks.attention`.

Nothing is run or timed, and no device is needed. What is compiled is the first half of a block, tokens + attention of
normalised tokens, 16 heads, products in bfloat16 and what layers hand on stored in it; forward, and with gradients.
Tokens of all images together are about those of 64 images of 197. Numbers of tokens: of 224 pixels by patches of 14,
384 by 16, 448 by 14 and 518 by 14, class token included. 'HBM' crosses the device's memory and 'bound' is the least
time at the published rates, as `vit-flax plan` counts them; padding to a kernel's blocks is in both. Rows go to
benchmarks/results/attention.json one by one; `--add` compiles only what is not there yet.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.accelerators import CHIPS, MODES
from benchmarks.environment import describe
from benchmarks.results import RESULTS, save
from vit_flax import gpu_compiler

BACKENDS = {"v5e": ("rows", "splash", "stored"), "h100": ("stored", "cudnn")}
TOKENS = (257, 577, 1025, 1370)
WIDTHS = (64, 80, 88, 128)  # of a head
HEADS, ALL_TOKENS = 16, 64 * 197
OUTPUT = RESULTS / "attention.json"
KEY = ("chip", "mode", "width", "tokens", "backend")


def compile_case(chip: str, mode: str, width: int, tokens: int, backend: str) -> tuple[Any, str]:
    """Returns the compiled program, and which back end 'auto' would have chosen."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from vit_flax.models.attention import Attention
    from vit_flax.models.attention_backends import attention_backend, backend_for
    from vit_flax.models.norm import LayerNorm
    from vit_flax.models.precision import Precision, compiled_for
    from vit_flax.plan.targets import compiler_options, topology_devices, traced_for

    policy = Precision(compute=jnp.bfloat16, stored=jnp.bfloat16)
    norm = LayerNorm(precision=policy)
    attention = Attention(HEADS * width, HEADS, qkv_bias=True, value_skip=False, precision=policy)
    batch = round(ALL_TOKENS / tokens)
    x = jax.ShapeDtypeStruct((batch, tokens, HEADS * width), jnp.float32)

    def init(key: Any, x: Any) -> Any:
        return norm.init(key, x), attention.init(key, x)

    def forward(params: Any, x: Any) -> Any:
        return x + attention.apply(params[1], norm.apply(params[0], x))

    def training(params: Any, x: Any, g: Any) -> Any:
        out, pullback = jax.vjp(forward, params, x)
        return out, pullback(g)

    device = topology_devices(CHIPS[chip])[0]
    alone = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    with traced_for(CHIPS[chip]), compiled_for(device.platform, kind=device.device_kind):
        auto = backend_for((batch, HEADS, tokens, width), jnp.bfloat16, policy, True)
        params = jax.eval_shape(init, jax.random.key(0), x)
        with attention_backend(backend):
            if mode == "training":
                lowered = jax.jit(training, in_shardings=alone).lower(params, x, x)
            else:
                lowered = jax.jit(forward, in_shardings=alone).lower(params, x)
    return lowered.compile(compiler_options(CHIPS[chip])), auto


def measure(*case: Any) -> dict[str, Any]:
    """Returns one row; where the program cannot be compiled, why."""
    import jax

    from vit_flax.chips import find_chip
    from vit_flax.plan.costs import costs
    from vit_flax.plan.hlo import Program

    row: dict[str, Any] = dict(zip(KEY, case, strict=True))
    started = time.perf_counter()
    try:
        compiled, auto = compile_case(*case)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        return {**row, "error": str(error).splitlines()[0][:160]}
    found = costs(Program(compiled.as_text()), find_chip(CHIPS[row["chip"]]))
    return {
        **row,
        "auto": auto,
        "bytes": found.bytes,
        "device_bytes": found.device_bytes,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "flops": found.flops,
        "bound_seconds": found.seconds,
        "compile_seconds": round(time.perf_counter() - started, 1),
    }


def table(result: dict[str, Any]) -> str:
    """Returns the rows as Markdown: a line a number of tokens, a column a back end."""
    versions = result["versions"]
    lines = [
        "### Attention: what the compilers make of half a block",
        f"{HEADS} heads, bfloat16, about {ALL_TOKENS:,} tokens in all, one chip, nothing run or timed; libtpu "
        f"{versions.get('libtpu')}, jax {versions.get('jax')}, commit {result['commit']}. Of each back end GB through "
        "the chip's memory / bound in ms; in bold the one that `auto` takes. The bound of splash leaves out what its "
        "kernel multiplies, which the program does not tell.",
    ]
    found = {tuple(row[name] for name in KEY): row for row in result["rows"]}
    for chip, mode in dict.fromkeys(key[:2] for key in found):
        names = BACKENDS[chip]
        lines += ["", f"**{mode}, {chip}**", "", f"| head width | tokens | {' | '.join(names)} |",
                  f"|---|---|{'---|' * len(names)}"]  # fmt: skip
        for width, tokens in sorted({key[2:4] for key in found if key[:2] == (chip, mode)}):
            cells = [_cell(found.get((chip, mode, width, tokens, name))) for name in names]
            lines.append(f"| {width} | {tokens} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or "error" in row:
        return "" if row is None else row["error"]
    text = f"{row['device_bytes'] / 1e9:.2f} / {row['bound_seconds'] * 1e3:.2f}"
    return f"**{text}**" if row["auto"] == row["backend"] else text


def main() -> None:
    """Compiles every case that is asked for and writes the results, after each one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--add", action="store_true", help="keep the rows that are there, and compile the others")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    with gpu_compiler.quiet():
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.devices()
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    if options.add and options.output.exists():
        rows = {tuple(row[name] for name in KEY): row for row in json.loads(options.output.read_text())["rows"]}
    taken = describe()
    for case in (
        (chip, mode, width, tokens, backend)
        for chip in options.chips for mode in options.modes for width in options.widths for tokens in options.tokens
        for backend in BACKENDS[chip]
    ):  # fmt: skip
        if case in rows:
            continue
        rows[case] = measure(*case)
        print(json.dumps(rows[case]), file=sys.stderr, flush=True)
        save(options.output, {"benchmark": "attention", **taken, "rows": list(rows.values())})
        jax.clear_caches()


if __name__ == "__main__":
    main()
