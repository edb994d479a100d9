"""One contestant in a process of its own: prepares, then runs as many calls as requested.

The parent (benchmarks.rounds) writes a JSON job on the command line and numbers of calls to standard input; answers are
JSON lines on standard output.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.cases import Case
from benchmarks.peers import Job, get_peer
from vit_flax.host_memory import keep_host_memory


def main() -> int:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    order = json.loads(sys.argv[1])
    data = np.load(order["inputs"])
    case = Case(**order["case"])
    job = Job(case, Path(order["weights"]), data["images"], data["labels"], order["variant"])
    if order["keep_memory"]:
        keep_host_memory()
    try:
        peer = get_peer(order["file"])
        prepared = peer.prepare(job)
    except Exception as error:  # the parent reports a contestant that cannot take part and goes on
        traceback.print_exc()
        _say(answers, {"error": f"{type(error).__name__}: {error}"[:500]})
        return 1
    np.save(order["outputs"], prepared.outputs)
    settings = {"compile_seconds": prepared.compile_seconds, "settings": peer.SETTINGS, **prepared.notes}
    _say(answers, {**settings, "flops": getattr(peer, "FLOPS", case.flops)})
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            prepared.run()
            seconds.append(time.perf_counter() - started)
        _say(answers, {"seconds": seconds, "peak_bytes": _peak_bytes()})
    return 0


def _peak_bytes() -> int:
    try:  # ru_maxrss starts with the parent's resident memory at the fork
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _say(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
