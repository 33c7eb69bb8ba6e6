# SPDX-License-Identifier: Apache-2.0
"""A thread that works for a rank's main thread, which must look after MPI and, while it trains, after the devices."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

#: Seconds after which a working thread yields Python's interpreter lock to one that wants it. At Python's 5 ms a step
#: of 10 ms that is dispatched while another thread traces takes 588 ms, at this 16 ms.
SWITCH_SECONDS = 2e-4

T = TypeVar("T")


class Worker:
    """One thread, which does one thing after the other."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._last: Future[Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is under way or waits."""
        return self._last is not None and not self._last.done()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do `work` once all that was submitted before is done."""
        future = self._pool.submit(_quickly, work)
        self._last = future
        return future

    def close(self) -> None:
        """Take nothing more, and forget what has not begun; what has begun is finished."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _quickly(work: Callable[[], T]) -> T:
    """What `work` returns; meanwhile threads take turns more often."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, SWITCH_SECONDS))
    try:
        return work()
    finally:
        sys.setswitchinterval(usual)
