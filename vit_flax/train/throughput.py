"""Throughput and model FLOPs utilisation of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import jax

from vit_flax.train.config import ResolvedConfig
from vit_flax.train.flops import peak_flops, training_flops


class Throughput:
    """Measures images per second and model FLOPs utilisation (MFU), without evaluations and saves."""

    def __init__(self, config: ResolvedConfig) -> None:
        self.count = 0
        self._batch, self._began, self._paused = config.data.batch_size, time.perf_counter(), 0.0
        self._config, self._flops, self._peak = config, training_flops(config), 0.0
        self.measure_peak()

    def measure_peak(self) -> None:
        """Measures the peak FLOP/s again, where it is not known: other work may have disturbed the last time."""
        self._peak = max(self._peak, peak_flops(self._config) * jax.device_count())

    def restart(self) -> None:
        """Resets count and clock."""
        self.count, self._began, self._paused = 0, time.perf_counter(), 0.0

    def measure(self) -> dict[str, float | None]:
        """Returns images_per_second and mfu since the last call, None when no step was counted.

        Nor is a share above 1 told: the peak was measured while the machine did something else as well.
        """
        seconds = time.perf_counter() - self._began - self._paused
        images = self.count * self._batch / max(seconds, 1e-9) if self.count else None
        self.restart()
        if images is None:
            return {"images_per_second": None, "mfu": None}
        share = images * self._flops / self._peak
        return {"images_per_second": images, "mfu": share if share <= 1 else None}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent in the context."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began
