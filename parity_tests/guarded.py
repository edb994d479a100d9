"""Reads hostile files in a process of its own with limits on time and memory.

`python -m parity_tests.guarded PATH ...` prints the outcome of each path as JSON.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SECONDS = 2.0  # of processor time, which other work on the machine does not change
MEGABYTES = 500


def outcome(read: Callable[[], Any], lines: int = 1) -> str:
    """Returns 'read', 'refused: <message>' or, for whatever else happens, 'failed: <what>'.

    A refusal of more than so many lines is a failure.
    """
    from vit_flax.convert import ConversionError

    signal.signal(signal.SIGPROF, _too_long)
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)  # waits for something
    try:
        read()
    except ConversionError as error:
        said = str(error).splitlines()
        return f"refused: {said[0]}" if 1 <= len(said) <= lines else f"failed: {len(said)} lines: {error}"
    except BaseException as error:
        return f"failed: {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read"


def _too_long(_signal: int, _frame: Any) -> None:
    raise TimeoutError("took too long")


def read_all(path: str) -> None:
    """Opens a checkpoint and reads every tensor, as a conversion would."""
    from vit_flax.convert import read_checkpoint

    checkpoint = read_checkpoint(path)
    for name, shape in checkpoint.shapes.items():
        array = checkpoint.read(name)
        assert array.shape == shape
        array.reshape(-1)[:1].tobytes()


def limit_memory(megabytes: int) -> None:
    """Limits this process to an amount of memory beyond its own with torch loaded, which no file is to blame for."""
    import torch

    import vit_flax  # noqa: F401

    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def read_guarded(paths: Iterable[Path]) -> dict[str, str]:
    """Returns the outcome of each path, by its name."""
    command = [sys.executable, "-m", "parity_tests.guarded", *map(str, paths)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


def main(paths: list[str]) -> None:
    """Prints the outcome of each path."""
    limit_memory(MEGABYTES)
    print(json.dumps({Path(path).name: outcome(lambda path=path: read_all(path)) for path in paths}))


if __name__ == "__main__":
    main(sys.argv[1:])
