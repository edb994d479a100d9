"""Multi-process training by jax.distributed, with timeouts that notice a lost process soon."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

import jax

HEARTBEAT_SECONDS = 20  # a process silent for so long is gone; JAX's default of 100 is more than a minute
SHUTDOWN_SECONDS = 15  # how long one that ends waits for the others
# errors of collectives when a peer is lost, here and in the TPU's runtime
_LOST = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "heartbeat", "Broken pipe",
         "coordination service", "Gloo", "ABORTED", "UNAVAILABLE")  # fmt: skip


class ProcessLost(RuntimeError):
    """Another process of the job was lost."""


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> bool:
    """Joins this process to the others of a job, and returns whether there are any; call it before the rest of JAX.

    Args:
        coordinator: 'host:port' of process 0; 'auto' where the cluster tells (Cloud TPU, SLURM, Open MPI, Kubernetes).
        processes: how many there are; with 'auto' the cluster tells.
        process: which of them this is, from 0.

    Raises:
        ValueError: some of the three are given and others not.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None and processes is None and process is None:
        return False
    automatic = coordinator == "auto"
    if not automatic and None in (coordinator, processes, process):
        raise ValueError("give coordinator (host:port), processes and process together, or coordinator=auto alone")
    jax.distributed.initialize(
        None if automatic else coordinator,
        processes,
        process,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    return True


GONE = "another process of the job is gone"
AGAIN = "start the job again, on any number of devices, and it goes on from its last checkpoint"
_on_abort: Any = None  # C calls it: it must not be garbage-collected


def explain(error: BaseException) -> ProcessLost | None:
    """Returns the message of a lost process, where an error of a collective means that; None for other errors."""
    text = str(error)
    if jax.process_count() == 1 or not any(words in text for words in _LOST):
        return None
    where = f"this is {jax.process_index()} of {jax.process_count()}"
    return ProcessLost(f"{GONE} ({where}): {' '.join(text.split())[:160]}; {AGAIN}")


def announce_abort(name: str) -> None:
    """Makes this process end with one line, prefixed by `name`, and status 1 where JAX's service aborts it.

    That is how the service ends a process when another is gone, past all exceptions and handlers of Python's; its own
    account of the reason comes before.
    """
    global _on_abort
    line = f"{name}: {GONE}, as JAX says above; {AGAIN}\n".encode()

    def say(_: int) -> None:
        os.write(2, line)
        leave()

    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(say)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)


def leave() -> None:
    """Ends this process at once with status 1: the shutdown barrier would wait for the lost one, perhaps for ever."""
    os._exit(1)
