# SPDX-License-Identifier: Apache-2.0
"""Images on their way to the devices and on them: transfer ahead of time, augmentation, normalisation."""

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


#: Batches that wait on the devices, so that a transfer ends before its step begins.
BATCHES_AHEAD = 2


class DeviceBatch(NamedTuple):
    """A :class:`~aiperf_mpi.data.loader.Batch` on a replica's devices, first axis over them: images uint8
    [D, B, H, W, C], labels int32 [D, B], and `valid` bool [D, B], false for images that only fill up the
    batch."""

    images: Any
    labels: Any
    valid: Any


# -- between host and devices ----------------------------------------------------------------------


def device_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """The layout of everything that a replica's devices hold: entry d of the first axis is device d's."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def local_count(devices: Iterable[jax.Device]) -> int:
    """How many of the devices are this process's."""
    return sum(device.process_index == jax.process_index() for device in devices)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """A tree of host arrays on the devices: [D, ...], or of this process's devices alone where there are
    others'.

    Returns before the transfer ends, and a CPU device may go on using the host's memory: do not write the
    arrays again.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def replicate(tree: Any, sharding: NamedSharding) -> Any:
    """A tree of host arrays, once on each device, as arrays [D, ...]."""
    count = local_count(sharding.mesh.devices.flat)
    return place(jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree), sharding)


def first(tree: Any) -> Any:
    """What this process's first device holds of a tree of arrays [D, ...], as numpy arrays [...], no
    collective."""
    return jax.tree.map(lambda x: x[0], jax.device_get(jax.tree.map(lambda x: x.addressable_data(0), tree)))


class Feed:
    """Batches on the devices before they are asked for: a thread reads `batches` and transfers them.

    Use it as a context: leaving it ends the thread. What `batches` raises, `take` raises.

    Arguments:
        batches: host arrays (images, labels, valid), as :mod:`aiperf_mpi.data.loader` yields them, and never
            written again (see `place`).
        sharding: of the devices, see `device_sharding`.
        whole: refuse, by ValueError, a batch with images that are not valid.
        ahead: batches that may wait on the devices.
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
        """The next batch, or None if none is there after `timeout` seconds, or behind the last (see
        `ended`)."""
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

    def close(self) -> None:
        """Ends the thread, at the next batch at the latest, and closes `batches` if it is a generator."""
        self._closed.set()
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

                # Only what has arrived counts as ready, so that waiting for a slow transfer shows as the
                # data's time.
                jax.block_until_ready(batch)
                if not self._put(batch):
                    return
        except BaseException as error:
            # Not lost: the thread that takes the batches raises it.
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


# -- on the devices, inside of a step --------------------------------------------------------------
