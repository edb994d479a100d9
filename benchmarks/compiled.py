"""Programs compiled for one absent chip: their costs, written row by row."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe
from benchmarks.results import save
from vit_flax import gpu_compiler

Row = dict[str, Any]
Case = tuple[Any, ...]


@contextlib.contextmanager
def one_chip(topology: str) -> Iterator[Any]:
    """Yields the sharding of arrays on one chip; the context traces for that chip's kind."""
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from vit_flax.models.precision import compiled_for
    from vit_flax.plan.targets import topology_devices, traced_for

    device = topology_devices(topology)[0]
    with traced_for(topology), compiled_for(device.platform, kind=device.device_kind):
        yield NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())


def measure(row: Row, topology: str, compile_program: Callable[[], tuple[Any, Row]]) -> Row:
    """Returns a row with its program's figures, or with its 'error' where it cannot be compiled.

    Args:
        row: fields that identify the program.
        topology: topology whose published rates bound the program.
        compile_program: returns the compiled program and further fields of the row.
    """
    import jax

    from vit_flax.chips import find_chip
    from vit_flax.plan.costs import costs
    from vit_flax.plan.hlo import Program

    started = time.perf_counter()
    try:
        compiled, more = compile_program()
        text = compiled.as_text()  # XLA cannot parse what the v6e's compiler returns for some programs
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        return {**row, "error": str(error).splitlines()[0][:160]}
    found = costs(Program(text), find_chip(topology))
    reported = compiled.cost_analysis() or {}
    return {
        **row,
        **more,
        "accessed": int(reported["bytes accessed"]) if "bytes accessed" in reported else None,
        "bytes": found.bytes,
        "device_bytes": found.device_bytes,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "flops": found.flops,
        "uncounted": sorted(found.uncounted),
        "bound_seconds": found.seconds,
        "compile_seconds": round(time.perf_counter() - started, 1),
    }


def write_rows(
    benchmark: str,
    output: Path,
    key: Sequence[str],
    cases: Sequence[Case],
    measure_case: Callable[..., Row],
    add: bool,
) -> None:
    """Measures every case and writes the file after each.

    Args:
        benchmark: name of the benchmark in the file.
        output: path of the file.
        key: fields of a row that identify its case.
        cases: cases to measure.
        measure_case: returns the row of a case.
        add: keep the rows of the file, and measure only cases without a row of a known commit.
    """
    with gpu_compiler.quiet():
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.devices()
    there = json.loads(output.read_text())["rows"] if add and output.exists() else []
    rows = {tuple(row[name] for name in key): row for row in there}
    taken = describe()
    for number, case in enumerate(cases, 1):
        if rows.get(case, {}).get("commit"):
            continue
        rows[case] = measure_case(*case) | {"commit": taken["commit"]}
        print(f"{number}/{len(cases)} {json.dumps(rows[case])}", file=sys.stderr, flush=True)
        save(output, {"benchmark": benchmark, **taken, "rows": list(rows.values())})
        jax.clear_caches()  # rows add up to gigabytes
