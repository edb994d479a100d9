"""Memory traffic and bounds of each attention back end, compiled for a TPU and a GPU: `python -m benchmarks.attention`.

Nothing is run or timed, and no device is needed. The program is the attention half of a block, x + attention(norm(x)),
16 heads, with products and stored activations in bfloat16; forward, and with gradients. The tokens of a batch are about
those of 64 images of 197. Numbers of tokens: of 224 pixels by patches of 14, 384 by 16, 448 by 14 and 518 by 14, class
token included. 'HBM' is the traffic of the device's memory and 'bound' the least time at the published rates, as
`vit-flax plan` counts them; padding to a kernel's blocks is in both. Rows go to
benchmarks/results/attention.json one by one; `--add` compiles only what is not there yet.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.accelerators import CHIPS, MODES
from benchmarks.compiled import measure, one_chip, write_rows
from benchmarks.results import RESULTS

BACKENDS = {"v5e": ("rows", "splash", "stored"), "h100": ("stored", "cudnn")}
TOKENS = (257, 577, 1025, 1370)
WIDTHS = (64, 80, 88, 128)  # of a head
HEADS, ALL_TOKENS = 16, 64 * 197
OUTPUT = RESULTS / "attention.json"
KEY = ("chip", "mode", "width", "tokens", "backend")


def compile_case(chip: str, mode: str, width: int, tokens: int, backend: str) -> tuple[Any, str]:
    """Returns the compiled program, and the back end that 'auto' chooses."""
    import jax
    import jax.numpy as jnp

    from vit_flax.models.attention import Attention
    from vit_flax.models.attention_backends import attention_backend, backend_for
    from vit_flax.models.norm import LayerNorm
    from vit_flax.models.precision import Precision
    from vit_flax.plan.targets import compiler_options

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

    with one_chip(CHIPS[chip]) as alone:
        auto = backend_for((batch, HEADS, tokens, width), jnp.bfloat16, policy, True)
        params = jax.eval_shape(init, jax.random.key(0), x)
        with attention_backend(backend):
            if mode == "training":
                lowered = jax.jit(training, in_shardings=alone).lower(params, x, x)
            else:
                lowered = jax.jit(forward, in_shardings=alone).lower(params, x)
    return lowered.compile(compiler_options(CHIPS[chip])), auto


def measure_case(*case: Any) -> dict[str, Any]:
    """Returns one row; its 'error' where the program cannot be compiled."""
    row: dict[str, Any] = dict(zip(KEY, case, strict=True))

    def compile_program() -> tuple[Any, dict[str, Any]]:
        compiled, auto = compile_case(*case)
        return compiled, {"auto": auto}

    return measure(row, CHIPS[row["chip"]], compile_program)


def table(result: dict[str, Any]) -> str:
    """Returns the rows as Markdown: a line per number of tokens, a column per back end."""
    versions = result["versions"]
    lines = [
        "### Attention: what the compilers make of half a block",
        f"{HEADS} heads, bfloat16, about {ALL_TOKENS:,} tokens in all, one chip, nothing run or timed; libtpu "
        f"{versions.get('libtpu')}, jax {versions.get('jax')}, commit {result['commit']}. Of each back end GB through "
        "the chip's memory / bound in ms; in bold the one that `auto` takes.",
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
    cases = [
        (chip, mode, width, tokens, backend)
        for chip in options.chips for mode in options.modes for width in options.widths for tokens in options.tokens
        for backend in BACKENDS[chip]
    ]  # fmt: skip
    write_rows("attention", options.output, KEY, cases, measure_case, options.add)


if __name__ == "__main__":
    main()
