"""Measures loading a ViT-L: time and memory, ours beside torch's own load of the same file.

`python -m benchmarks.convert [--preset NAME] [--repeats N]` writes benchmarks/results/convert.json. Every measurement
is a process of its own that has imported its libraries and run its first small operation before it starts; the file is
in the page cache. Memory is the peak's growth over what the process held before, divided by the file's size.

'torch mapped' ends with tensors that still lie in the file, which only torch can use (ours are transposed on the way
in); 'torch tensors' with all tensors in memory (load_file and clone, load(weights_only=True), or np.load); 'timm model'
and 'vit_flax' with a model that can run: timm.create_model with load_state_dict, and vit_flax.load. Of the repeats the
least time and the largest peak count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, write

KNOWN = {"num_heads": 16, "norm_eps": 1e-6, "activation": "gelu", "global_pool": "token", "image_size": 224}
FILES = ("model.safetensors", "model.pth", "model.npz")
KINDS = ("torch mapped", "torch tensors", "timm model", "vit_flax")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(work: Callable[[], Any]) -> dict[str, float]:
    """Returns seconds and the growth of resident memory at its peak, in bytes, sampled every millisecond."""
    before = _resident()
    peak, done = before, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident())

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    peak = max(peak, _resident())
    done.set()
    sampler.join()
    assert result is not None
    return {"seconds": seconds, "peak_growth_bytes": peak - before}


def flax_model(path: str) -> Callable[[], Any]:
    """Prepares vit_flax.load."""
    import jax
    import jax.numpy as jnp
    import torch  # noqa: F401

    import vit_flax

    jax.block_until_ready(jnp.ones(3))
    vit_flax.create_model("vit_tiny_patch16_224")
    return lambda: jax.block_until_ready(vit_flax.load(path, "timm", **KNOWN)[1])


def _torch_tensors(path: str, mapped: bool = False) -> Any:
    import numpy as np
    import torch
    from safetensors.torch import load_file

    if path.endswith(".safetensors"):
        found = load_file(path)
        return found if mapped else {name: found.pop(name).clone() for name in list(found)}
    if path.endswith(".pth"):
        return torch.load(path, weights_only=True, mmap=mapped)
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def torch_tensors(path: str) -> Callable[[], Any]:
    """Prepares torch's own load into memory."""
    import torch
    from safetensors import torch as _  # noqa: F401

    torch.ones(3).sum()
    return lambda: _torch_tensors(path)


def torch_mapped(path: str) -> Callable[[], Any]:
    """Prepares torch's own load that leaves the tensors in the mapped file, touching every page of it."""
    import torch
    from safetensors import torch as _  # noqa: F401

    torch.ones(3).sum()
    return lambda: sum(tensor.reshape(-1)[::1024].sum() for tensor in _torch_tensors(path, mapped=True).values())


def timm_model(path: str, preset: str) -> Callable[[], Any]:
    """Prepares timm's model with that file's tensors."""
    import torch

    from parity_tests.peers import import_timm

    timm: Any = import_timm()
    torch.ones(3).sum()

    def work() -> Any:
        model = timm.create_model(preset)
        model.load_state_dict(_torch_tensors(path))
        return model

    return work


def write_files(folder: Path, preset: str) -> dict[str, int]:
    """Writes random weights in every kind of file and returns the sizes."""
    import numpy as np

    import vit_flax
    from vit_flax.convert import get_layout, write_checkpoint
    from vit_flax.convert.moves import to_tensors
    from vit_flax.models.shapes import expected_shapes

    model = vit_flax.create_model(preset)
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape, np.float32) for name, shape in expected_shapes(model).items()}
    tensors = to_tensors(params, get_layout("timm").rules(model.config))
    for name in FILES:
        write_checkpoint(folder / name, tensors, {})
    return {name: (folder / name).stat().st_size for name in FILES}


def table(result: dict[str, Any]) -> str:
    """Returns seconds and memory of every kind of file as a Markdown table."""
    lines = [
        f"### Loading {result['preset']}",
        f"{result['device']}, best of {result['repeats']} interleaved repeats, commit {result['commit']}; memory is "
        "the peak's growth over the size of the file",
        "",
        "| file | "
        + " | ".join(f"{kind}, s | memory" for kind in KINDS)
        + " | ours / torch tensors | ours / timm model |",
        "|---" * (2 * len(KINDS) + 3) + "|",
    ]
    for row in result["rows"]:
        cells = [f"{row[f'{kind} seconds']:.2f} | {row[f'{kind} peak over file size']:.2f}" for kind in KINDS]
        cells += [f"{row[f'vit_flax over {kind}']:.2f}" for kind in ("torch tensors", "timm model")]
        lines.append(f"| {row['file']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs every measurement and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vit_large_patch16_224", help="a plain ViT-L or another with 16 heads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "convert.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, path = options.one
        prepare = {"vit_flax": flax_model, "torch tensors": torch_tensors, "torch mapped": torch_mapped}
        work = timm_model(path, options.preset) if what == "timm model" else prepare[what](path)
        print(json.dumps(measure(work)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_files(Path(folder), options.preset)
        for name in FILES:
            best: dict[str, dict[str, float]] = {}
            for _ in range(options.repeats):  # interleaved, so that a busy moment hits all of them
                for what in KINDS:
                    command = [sys.executable, "-m", "benchmarks.convert", "--preset", options.preset]
                    command += ["--one", what, f"{folder}/{name}"]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found = json.loads(done.stdout)
                    kept = best.setdefault(what, found)
                    kept["seconds"] = min(kept["seconds"], found["seconds"])
                    kept["peak_growth_bytes"] = max(kept["peak_growth_bytes"], found["peak_growth_bytes"])
            row: dict[str, Any] = {"file": name, "file_bytes": sizes[name]}
            for what, found in best.items():
                row[f"{what} seconds"] = round(found["seconds"], 3)
                row[f"{what} peak over file size"] = round(found["peak_growth_bytes"] / sizes[name], 3)
            for what in KINDS[:-1]:
                row[f"vit_flax over {what}"] = round(row["vit_flax seconds"] / row[f"{what} seconds"], 3)
            rows.append(row)
            print(json.dumps(row, indent=1), flush=True)
    load = [round(load, 2) for load in os.getloadavg()]  # of other work, too: best of all repeats
    settings = {"preset": options.preset, "repeats": options.repeats, "load_average": load}
    write(options.output, "convert", **settings, rows=rows)


if __name__ == "__main__":
    main()
