"""Batches on their way to the devices while the step before them runs."""

from __future__ import annotations

import collections
from typing import Any, Self

import jax

from vit_flax.train.data.loader import Batch, Loader

ON_HOST = ("index",)


class DevicePrefetch:
    """An iterator over a loader's batches as global arrays; its state is that of the batches handed out."""

    def __init__(self, loader: Loader, sharding: jax.sharding.Sharding, size: int) -> None:
        self._loader, self._sharding, self._size = loader, sharding, size
        self._state = loader.get_state()
        self._ahead: collections.deque[tuple[Batch, dict[str, Any]]] = collections.deque()

    def __iter__(self) -> Self:
        iter(self._loader)
        self._state = self._loader.get_state()
        return self

    def __next__(self) -> Batch:
        while len(self._ahead) < self._size:
            try:
                batch = next(self._loader)
            except StopIteration:
                break
            self._ahead.append((self._put(batch), self._loader.get_state()))
        if not self._ahead:
            raise StopIteration
        batch, self._state = self._ahead.popleft()
        return batch

    def _put(self, batch: Batch) -> Batch:
        """Starts the copies to the devices and returns at once; 'index' stays where it is."""
        return {
            name: value if name in ON_HOST else jax.make_array_from_process_local_data(self._sharding, value)
            for name, value in batch.items()
        }

    def get_state(self) -> dict[str, Any]:
        """Returns the loader's state after the last batch handed out, whatever was made ahead of it."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position of `get_state`."""
        self._ahead.clear()
        self._loader.set_state(state)
        self._state = self._loader.get_state()

    def close(self) -> None:
        """Ends the loader's threads and processes."""
        self._ahead.clear()
        self._loader.close()


def prefetch_to_device(loader: Loader, sharding: jax.sharding.Sharding, size: int = 2) -> DevicePrefetch:
    """Returns the batches of a loader as arrays of this sharding, up to `size` of them on their way.

    Every process gives its share of the batch; the arrays are the whole of it.
    """
    return DevicePrefetch(loader, sharding, max(1, size))
