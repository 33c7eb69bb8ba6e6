# SPDX-License-Identifier: Apache-2.0
"""A thread that works for a rank's main thread, which must look after MPI and, while it trains, after the
devices."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

#: Seconds after which a thread yields Python's interpreter lock to one that wants it, on a trainer. At
#: Python's 5 ms a step of 10 ms that is dispatched while another thread traces takes 588 ms, at this 16 ms.
SWITCH_SECONDS = 2e-4

T = TypeVar("T")


class Worker:
    """One thread, which does one thing after the other."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._under_way: list[Future[Any]] = []

    @property
    def busy(self) -> bool:
        """Whether anything is under way or waits."""
        # What is done is let go, and its result with it.
        self._under_way = [future for future in self._under_way if not future.done()]
        return bool(self._under_way)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do `work` once all that was submitted before is done."""
        future = self._pool.submit(work)
        self._under_way = [*(other for other in self._under_way if not other.done()), future]
        return future

    def close(self) -> None:
        """Take nothing more, and forget what has not begun; what has begun is finished."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def take_turns() -> None:
    """Let this process's threads take turns often, from now on: the interval is the process's, so that no
    worker of several may set it back while another one works."""
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
