"""SIGTERM and Ctrl-C: the run saves a checkpoint after the current step and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

ANSWERED = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def told_to_stop(say: Callable[[str], None]) -> Iterator[Callable[[int], bool]]:
    """Yields a function that returns, after a step, whether a signal came; all processes agree on the answer.

    A second Ctrl-C is Python's own again: it stops the process at once. `say` tells a person that the first was heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    came = threading.Event()
    several = jax.process_count() > 1

    def hear(number: int, _: Any) -> None:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        came.set()
        if number == signal.SIGINT:
            say("Ctrl-C: saving after this step; once more stops at once")
            if several:
                os.kill(os.getpid(), signal.SIGTERM)  # JAX's own handler notifies the other processes

    before = {}
    for number in (signal.SIGINT,) if several else ANSWERED:
        before[number] = signal.signal(number, hear)
    try:
        if several:
            from jax.experimental import multihost_utils

            yield multihost_utils.reached_preemption_sync_point  # all agree on a step
        else:
            yield lambda step: came.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
