"""`vit-flax plan`: what a training step needs on TPUs and GPUs, compiled without one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from vit_flax.cli.options import assignment, format_table
from vit_flax.gpu_compiler import quiet

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands
    from vit_flax.plan import Plan
    from vit_flax.train.config import ResolvedConfig

EXAMPLE = """example:
  vit-flax plan vit_base_patch16_224 --topology v5e:4x4 --batch 1024
  vit-flax plan deit_s16 --topology v6e:4x4 --search
  vit-flax plan vit_base_patch16_224 --topology h100:8
  vit-flax plan vit_large_patch16_224 --topology v5p:4x4x4 --batch 4096 --mesh fsdp=16,tensor=4

Needs a compiler and no device: for TPUs pip install 'vit-linen[tpu]', for GPUs pip install 'vit-linen[gpu-plan]'. The
bound on step time adds up, over the operations of the compiled program, the slower of computing their products and
moving their bytes through the device's memory, and what is exchanged while nothing else runs. Exit status: 0 it fits;
1 it does not; 2 unusable input."""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "plan",
        help="compile a training step for TPUs or GPUs that you do not have",
        description="Compiles the training step for a topology: memory by kind, traffic, a bound on time and MFU.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", metavar="PRESET|RECIPE", help="a preset, a recipe, or a .json file with a TrainConfig")
    parser.add_argument(
        "--topology",
        required=True,
        help="chip and shape: v4:2x2x2, v5e:4x4, v5p:4x4x4, v6e:16x16, or a TPU's own name such as v5litepod-16 or "
        "v4-8; GPUs: a100:8, h100:8, h200:8, b200:8, h100:4x8 (hosts x GPUs)",
    )
    parser.add_argument(
        "--batch", type=int, help="images a step, all chips together (default: 64 a chip; the recipe's)"
    )
    parser.add_argument(
        "--mesh", type=_mesh, help="data=..,fsdp=..,tensor=.. (default: the largest fsdp, of > 16 chips half)"
    )
    parser.add_argument("--dtype", choices=("bf16", "float32"), help="of matrix products (default: bf16; the recipe's)")
    parser.add_argument("--remat", help="rematerialisation: none, full, dots_with_no_batch_dims_saveable ...")
    parser.add_argument(
        "--scan",
        action=argparse.BooleanOptionalAction,
        help="scan over the layers (default: yes for a preset whose blocks are alike, else the recipe's)",
    )
    parser.add_argument("--set", action="append", default=[], type=assignment, metavar="KEY=VALUE", dest="changes",
                        help="a field of the config, such as model.depth=48; may be repeated")  # fmt: skip
    parser.add_argument("--search", action="store_true", help="find the largest batch and the least remat that fit")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def _mesh(text: str) -> dict[str, int]:
    sizes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in ("data", "fsdp", "tensor") or not size.lstrip("-").isdigit():
            raise argparse.ArgumentTypeError(f"{part!r} is not data=N, fsdp=N or tensor=N")
        sizes[name] = int(size)
    return sizes


def build_config(options: argparse.Namespace, chips: int) -> ResolvedConfig:
    """Returns the config of a preset or a recipe, with the options' changes."""
    from vit_flax.cli.train import build_config as of_recipe
    from vit_flax.config import TwoTowersConfig
    from vit_flax.models.loop import are_alike
    from vit_flax.presets import get_preset
    from vit_flax.recipes import RECIPES
    from vit_flax.recipes.adapting import pooled
    from vit_flax.train.config import DataConfig, LossConfig, TrainConfig

    if options.what in RECIPES or options.what.endswith(".json"):
        config = of_recipe(options.what, dict(options.changes), None)
    else:
        model, data, loss = get_preset(options.what).config, DataConfig(batch_size=64 * chips), LossConfig()
        if isinstance(model, TwoTowersConfig):
            data = DataConfig(name="webdataset_pairs", batch_size=64 * chips)
            loss = LossConfig(name="sigmoid" if model.logit_bias else "contrastive")
        elif not model.num_classes:
            model = pooled(model.replace(num_classes=1000))
        tower = model.image if isinstance(model, TwoTowersConfig) else model
        config = TrainConfig(model=model, steps=1000, precision="bf16", scan=are_alike(tower), data=data, loss=loss)
        config = config.replace(dict(options.changes))
    wanted = {"data.batch_size": options.batch, "precision": options.dtype, "remat": options.remat,
              "scan": options.scan}  # fmt: skip
    config = config.replace({name: value for name, value in wanted.items() if value is not None})
    return config.resolve(max(1_281_167, config.data.batch_size))  # the schedule's length changes nothing here


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the compilers' warnings do not concern the plan
    with quiet():
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.devices()  # looks for plugins, which may log errors
    from vit_flax.plan import plan, search, topology_devices
    from vit_flax.plan.planning import planned
    from vit_flax.train.config import MeshConfig

    config = build_config(options, len(topology_devices(options.topology)))
    config = planned(config, options.topology, MeshConfig(**options.mesh) if options.mesh else None)
    with _Clock(f"compiling for {options.topology}"):
        if options.search:
            found = search(config, options.topology, lambda made: print(_line(made), file=sys.stderr))
        else:
            found = plan(config, options.topology)
    if options.json:
        print(json.dumps(None if found is None else dataclasses.asdict(found)))
    elif found is None:
        print("nothing fits: not even the smallest batch tried, with full rematerialisation")
    else:
        print(describe(found))
    return 0 if found is not None and found.fits else 1


def _gigabytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e9:.2f} GB"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def _line(made: Plan) -> str:
    verdict = "fits" if made.fits else f"lacks {_gigabytes(made.missing_bytes)}"
    return f"batch {made.batch_size}  remat {made.remat}: {_gigabytes(made.total_bytes)} a chip, {verdict}"


def describe(made: Plan) -> str:
    """Returns a plan as text."""
    mesh = " ".join(f"{name}={size}" for name, size in made.mesh.items())
    layers = "layers scanned (--no-scan: unrolled)" if made.scan else "layers unrolled"
    short = f"does not fit: {_gigabytes(made.missing_bytes)} too much"
    rows = [
        ("topology", f"{made.topology}, {made.chips} chips, mesh {mesh}"),
        (
            "step",
            f"batch {made.batch_size}, {made.precision}, remat {made.remat}, {layers}",
        ),
        (
            "memory a chip",
            f"{_gigabytes(made.total_bytes)} of {_gigabytes(made.memory)}: {'fits' if made.fits else short}",
        ),
        *((f"  {kind}", _gigabytes(count)) for kind, count in made.memory_bytes.items()),
        ("  (of them state)", _gigabytes(made.state_bytes)),
        ("model FLOPs", f"{made.model_flops / 1e12:.3f} T a chip and step"),
    ]
    if made.step_seconds is not None and made.step_flops is not None:
        rows += [
            ("step FLOPs", f"{made.step_flops / 1e12:.3f} T a chip, in products"),
            ("memory traffic", f"{_gigabytes(made.device_bytes)} a chip through its memory, "
             f"{_gigabytes(made.bytes_accessed)} with on-chip memory"),
            ("step time", f"at least {_ms(made.step_seconds)} ms: "
             f"operations {_ms(made.operation_seconds)}, exposed copies {_ms(made.copy_seconds)}, "
             f"exposed collectives {_ms(made.exposed_seconds)} ({_ms(made.hidden_seconds)} overlapped)"),
            ("MFU", f"at most {made.mfu:.1%}"),
            *(
                (row["kind"], f"{row['count']} a step among {row['group']}, {_gigabytes(row['bytes'])} a chip, "
                 f"{row['seconds'] * 1e3:.2f} ms by {row['link']}")
                for row in made.collectives
            ),
        ]  # fmt: skip
    rows += [("compiled in", f"{made.compile_seconds:.0f} s"), *(("note", note) for note in made.notes)]
    return format_table(rows) + (f"\n\n{_dearest(made)}" if made.lines else "")


def _dearest(made: Any) -> str:
    """Returns the ten names whose operations take longest at the chip's published rates, as a table."""
    rows: list[tuple[str, ...]] = [("slowest operations", "ms", "share", "compute", "memory", "memory traffic")]
    for line in made.lines[:10]:
        milliseconds = [f"{line[name] * 1e3:.2f}" for name in ("seconds", "compute_seconds", "move_seconds")]
        share = f"{line['seconds'] / made.step_seconds:.0%}"
        rows.append((line["name"], milliseconds[0], share, *milliseconds[1:], _gigabytes(line["device_bytes"])))
    return format_table(rows)


class _Clock:
    """A line on the terminal that counts the seconds of a long wait."""

    def __init__(self, text: str) -> None:
        self.text, self.done = text, threading.Event()
        self.thread = threading.Thread(target=self._count, daemon=True)

    def _count(self) -> None:
        start = time.monotonic()
        while not self.done.wait(1):
            print(f"\r{self.text}: {time.monotonic() - start:.0f} s ", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> None:
        if sys.stderr.isatty():
            self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        if self.thread.ident:
            self.thread.join()
            print(file=sys.stderr)
