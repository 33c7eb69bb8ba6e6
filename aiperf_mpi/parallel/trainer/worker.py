# SPDX-License-Identifier: Apache-2.0
"""A thread for long work, as a rank's main thread must serve MPI and, while it trains, the devices."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

#: Seconds after which a thread on a trainer hands over Python's interpreter lock to one that waits for it. A
#: step of 10 ms that is dispatched while another thread traces takes 16 ms with this value, 588 ms with
#: Python's 5 ms.
SWITCH_SECONDS = 2e-4

T = TypeVar("T")


class Worker:
    """One thread, which does its work in the order of submission."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._under_way: list[Future[Any]] = []

    @property
    def busy(self) -> bool:
        """Whether any work is under way or waits."""
        # Finished work is forgotten, and its result with it.
        self._under_way = [future for future in self._under_way if not future.done()]
        return bool(self._under_way)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do `work` after all work submitted before."""
        future = self._pool.submit(work)
        self._under_way = [*(other for other in self._under_way if not other.done()), future]
        return future

    def close(self, cancel: bool = True) -> None:
        """Accept no more work, and `cancel` work that has not begun; work that has begun is finished."""
        self._pool.shutdown(wait=False, cancel_futures=cancel)


def take_turns() -> None:
    """Let this process's threads take turns often, from now on. The interval is the whole process's, so no
    worker sets it back while another one works."""
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
