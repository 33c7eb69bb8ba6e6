# SPDX-License-Identifier: Apache-2.0
"""Wait for the devices without being held by them, and decide when they are stuck.

A step that never ends cannot be interrupted: a thread waits for it, so that the main thread can go on.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import jax

#: A step is stuck after so many times the median step, and after so many seconds at least.
STEP_MEDIANS, STEP_SECONDS = 20.0, 300.0

#: A part of a preparation, such as the compilation, is stuck after so many seconds. The first step of a pass,
#: of which no median is known, has as long.
PREPARATION_SECONDS = 1800.0

#: Once the run is to end a step is stuck after so many seconds at least: rank 0 waits little longer.
END_SECONDS = 30.0

#: Last steps of which the median is taken.
_STEPS = 101


def preparation_seconds(configured: float) -> float:
    """Return the seconds after which a part of a preparation is stuck; `configured` is
    `run.stuck_seconds`."""
    return configured * PREPARATION_SECONDS / STEP_SECONDS if configured else PREPARATION_SECONDS


@dataclass
class StepTimes:
    """The durations of a pass's steps, and when the next one is stuck.

    Attributes:
        configured: `run.stuck_seconds`; 0: by the median of the steps.
    """

    configured: float = 0.0
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=_STEPS))

    def add(self, seconds: float) -> None:
        """Take the time between the ends of two steps."""
        self._steps.append(seconds)

    def patience(self) -> float:
        """Return the seconds after which a step is stuck."""
        if not self._steps:
            return preparation_seconds(self.configured)
        return self.configured or max(STEP_SECONDS, STEP_MEDIANS * median(self._steps))

    def last_patience(self) -> float:
        """Return the seconds after which a step is stuck that runs when the run is to end."""
        if not self._steps:
            return math.inf
        return max(END_SECONDS, STEP_MEDIANS * median(self._steps))


class Waiter:
    """A thread that waits for arrays on the devices."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._ready.set()
        self._thread: threading.Thread | None = None

    def begin(self, arrays: Any) -> None:
        """Wait for these arrays from now on, in the thread."""
        self._ready.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
            self._thread.start()
        self._work.put(arrays)

    def ready(self, seconds: float) -> bool:
        """Return whether the arrays are computed, or an error has taken their place, within `seconds`."""
        return self._ready.wait(seconds)

    def close(self) -> None:
        """End the thread, unless it waits for ever."""
        if self._thread is not None and self._ready.is_set():
            self._work.put(None)
            self._thread.join()
        self._thread = None

    def _run(self) -> None:
        while (arrays := self._work.get()) is not None:
            # The main thread, which reads the arrays next, raises the error of a device.
            with suppress(Exception):
                jax.block_until_ready(arrays)
            del arrays
            self._ready.set()


def is_ready(arrays: Any) -> bool:
    """Return whether arrays on the devices are computed, or deleted: JAX crashes where it asks a deleted
    one."""
    return all(array.is_deleted() or array.is_ready() for array in jax.tree.leaves(arrays))
