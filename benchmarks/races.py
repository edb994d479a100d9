"""The command line of the inference and training benchmarks: cases, contestants and the printed table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.cases import MODELS, Case
from benchmarks.checkout import checkout
from benchmarks.results import RESULTS, save
from benchmarks.rounds import Contestant, race

CONTESTANTS = [
    Contestant("vit_flax", "vit_flax", keep_memory=True),
    Contestant("vit_flax_import_only", "vit_flax"),
    Contestant("vit_flax_whole", "vit_flax", "whole", keep_memory=True),
    Contestant("vit_flax_accumulate", "vit_flax", "accumulate", keep_memory=True),
    Contestant("linen", "linen"),
    Contestant("linen+keep", "linen", keep_memory=True),
    Contestant("linen_scan", "linen", "scan"),
    Contestant("equimo", "equimo"),
    Contestant("torch", "torch_timm"),
    Contestant("torch_compile", "torch_timm", "compile"),
    Contestant("torch+mkl", "torch_timm", mkl=True),
    Contestant("torch+mkl+keep", "torch_timm", mkl=True, keep_memory=True),
    Contestant("torch_compile+mkl", "torch_timm", "compile", mkl=True),
    Contestant("transformers+mkl", "transformers_vit", mkl=True),
    Contestant("onnxruntime", "onnxruntime"),
    Contestant("openvino", "openvino"),
    Contestant("matmul_jax", "matmul", keep_memory=True),
    Contestant("matmul_torch+mkl", "matmul", "torch", mkl=True, keep_memory=True),
    Contestant("memory_jax", "memory", keep_memory=True),
]
INFERENCE_ONLY = {"vit_flax_whole", "onnxruntime", "openvino"}
TRAINING_ONLY = {"vit_flax_accumulate"}
# contestants that return the tokens after blocks, and the probes
FEATURES = {"vit_flax", "vit_flax_import_only", "vit_flax_whole", "torch", "torch+mkl", "torch+mkl+keep",
            "matmul_jax", "matmul_torch+mkl", "memory_jax"}  # fmt: skip


def run(mode: str, doc: str | None, arguments: Sequence[str] | None = None) -> None:
    """Parses the command line of one mode, races and prints; writes benchmarks/results/."""
    names = [contestant.name for contestant in CONTESTANTS]
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["B", "S"], choices=MODELS, metavar="MODEL")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32], metavar="N")
    parser.add_argument("--precisions", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"contestants: {', '.join(names)}")
    parser.add_argument("--against", metavar="COMMIT", help="ours of that commit beside today's, and whom --only names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long each is timed in a round")
    parser.add_argument("--dry", action="store_true", help="print only, write no result file")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        try:
            root = stack.enter_context(checkout(options.against)) if options.against else None
        except ValueError as error:
            parser.error(f"argument --against: {error}")
        before = (
            [] if root is None else [Contestant(f"vit_flax@{options.against}", "vit_flax", keep_memory=True, root=root)]
        )
        wanted = options.only or (["vit_flax"] if before else names)
        for model in options.models:
            for batch in options.batches:
                for precision in options.precisions:
                    case = Case(model, batch, precision, mode)
                    result = race(case, [*_chosen(case, wanted), *before], options.rounds, options.seconds)
                    result["name"] += f"-against-{options.against}" if before else ""
                    print(table(result), flush=True)
                    if not options.dry:
                        save(RESULTS / f"{result['name']}.json", result)


def _chosen(case: Case, wanted: Sequence[str]) -> list[Contestant]:
    """Returns the wanted contestants that can run a case."""
    absent = INFERENCE_ONLY if case.mode == "train_step" else TRAINING_ONLY
    return [
        contestant
        for contestant in CONTESTANTS
        if contestant.name in wanted
        and contestant.name not in absent
        and not (case.precision == "bfloat16" and contestant.name == "onnxruntime")
        and (case.mode != "features" or contestant.name in FEATURES)
    ]


def table(result: dict[str, Any]) -> str:
    """Returns the rows of one case as text; 'share' is of the fastest matrix product in the same run."""
    peak = peak_of(result)
    lines = [f"{result['name']} on {result['device']}, {result['rounds']} rounds, commit {result['commit']}"]
    lines.append(
        f"{'':20}{'ms':>9}{'spread':>8}{'img/s':>9}{'ratio':>7}{'(low-high)':>13}{'share':>7}{'compile s':>11}{'MB':>7}"
    )
    for name, row in result["rows"].items():
        if "error" in row:
            lines.append(f"{name:20}{row['error'][:90]}")
            continue
        if is_probe(name):
            rate = f"{row['bytes'] / row['seconds'] / 1e9:.0f} GB/s" if "bytes" in row else ""
            rate = rate or f"{row['flops_per_second'] / 1e9:.0f} GFLOP/s"
            lines.append(f"{name:20}{row['seconds'] * 1e3:9.1f}{row['spread']:8.0%}  {rate}")
            continue
        share = f"{row['flops_per_second'] / peak:7.0%}" if peak else f"{'-':>7}"
        spread = f"({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
        lines.append(
            f"{name:20}{row['seconds'] * 1e3:9.1f}{row['spread']:8.0%}{row['images_per_second']:9.1f}"
            f"{row['ratio']:7.2f}{spread:>13}{share}{row['compile_seconds']:11.1f}{row['peak_bytes'] / 2**20:7.0f}"
        )
    return "\n".join(lines) + "\n"


def is_probe(name: str) -> bool:
    """Returns whether a contestant measures the machine instead of running a model."""
    return name.startswith(("matmul", "memory"))


def peak_of(result: dict[str, Any]) -> float | None:
    """Returns the FLOP/s of the fastest matrix product of the run, None without one."""
    rates = [
        row["flops_per_second"]
        for name, row in result["rows"].items()
        if name.startswith("matmul") and "seconds" in row
    ]
    return max(rates, default=None)


def bandwidth_of(result: dict[str, Any]) -> float | None:
    """Returns the memory bandwidth of the run in bytes per second, None where it was not measured."""
    rates = [
        row["bytes"] / row["seconds"]
        for name, row in result["rows"].items()
        if name.startswith("memory") and "seconds" in row
    ]
    return max(rates, default=None)
