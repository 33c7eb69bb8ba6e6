# SPDX-License-Identifier: Apache-2.0
"""Move arrays between the host and a replica's devices, and transfer batches ahead of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

#: Name of the axis over the devices of a replica, in collectives and in shardings.
AXIS = "devices"

#: Number of batches that may wait on the devices, so that a transfer ends before its step begins.
BATCHES_AHEAD = 2


class DeviceBatch(NamedTuple):
    """A :class:`~aiperf_mpi.data.loader.Batch` on a replica's devices, which are the first axis.

    Images are uint8 [D, B, H, W, C], labels int32 [D, B], `valid` bool [D, B]: false for images that only
    fill up the batch.
    """

    images: Any
    labels: Any
    valid: Any


def device_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """Return the layout of arrays on a replica's devices: entry d of the first axis is on device d."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def local_count(devices: Iterable[jax.Device]) -> int:
    """Return the number of devices that belong to this process."""
    return sum(device.process_index == jax.process_index() for device in devices)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Put a tree of host arrays [D, ...] on the devices, and return it.

    If other processes share the sharding, the arrays have entries for this process's devices only. The
    function returns before the transfer ends, and a CPU device may keep using the host's memory: do not
    write to the arrays afterwards.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def replicate(tree: Any, sharding: NamedSharding) -> Any:
    """Copy a tree of host arrays to each device, and return it as arrays [D, ...]."""
    count = local_count(sharding.mesh.devices.flat)
    return place(jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree), sharding)


def first(tree: Any) -> Any:
    """Return the part of a tree of arrays [D, ...] on this process's first device, as numpy arrays [...].

    It needs no collective operation.
    """
    return jax.tree.map(lambda x: x[0], jax.device_get(jax.tree.map(lambda x: x.addressable_data(0), tree)))


class Feed:
    """A thread that reads batches and transfers them to the devices ahead of their use.

    Use it as a context manager: leaving the context ends the thread. `take` raises any error of `batches`.

    Arguments:
        batches: host arrays (images, labels, valid) from :mod:`aiperf_mpi.data.loader`. They are never
            written again (see `place`).
        sharding: layout on the devices, see `device_sharding`.
        whole: raise ValueError for a batch with images that are not valid.
        ahead: number of batches that may wait on the devices.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        sharding: NamedSharding,
        *,
        whole: bool = False,
        ahead: int = BATCHES_AHEAD,
    ) -> None:
        self.ended = False
        self._ready: queue.Queue[DeviceBatch | BaseException | None] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(batches, sharding, whole), name="feed", daemon=True
        )
        self._thread.start()

    def take(self, timeout: float = 0.0) -> DeviceBatch | None:
        """Return the next batch; None if none came in `timeout` seconds, or after the last (see `ended`)."""
        if self.ended:
            return None
        try:
            item = self._ready.get(timeout=timeout) if timeout > 0 else self._ready.get_nowait()
        except queue.Empty:
            return None
        self.ended = not isinstance(item, DeviceBatch)
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self, wait: bool = True) -> None:
        """End the thread, at the next batch at the latest, and close `batches` if it is a generator; `wait`
        until it has ended."""
        self._closed.set()
        if wait:
            self._thread.join()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, batches: Iterable[Any], sharding: NamedSharding, whole: bool) -> None:
        end: BaseException | None = None
        try:
            for images, labels, valid in batches:
                if whole and not np.all(valid):
                    raise ValueError(
                        f"a training batch has {np.size(valid) - np.sum(valid)} images that are not valid"
                    )
                batch = place(DeviceBatch(images, labels, np.asarray(valid, bool)), sharding)

                # A batch is ready once it has arrived, so that waiting for a transfer counts as data time.
                jax.block_until_ready(batch)
                if not self._put(batch):
                    return
        except BaseException as error:
            # The thread that takes the batches raises it.
            end = error
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()
        self._put(end)

    def _put(self, item: DeviceBatch | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False
