# SPDX-License-Identifier: Apache-2.0
"""One trainer's state while it works, and how it waits: for whatever its threads do, it returns to MPI meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiperf_mpi.parallel.best import Best
from aiperf_mpi.parallel.candidates import CandidateQueue
from aiperf_mpi.parallel.context import Context
from aiperf_mpi.parallel.errors import GenerationError
from aiperf_mpi.parallel.generation import Generation
from aiperf_mpi.parallel.workshop import Workshop
from aiperf_mpi.search.history import ArchitectureCache

#: Seconds between two looks for what is not ready.
LOOK_SECONDS = 0.005


T = TypeVar("T")


@dataclass
class Replica:
    """One trainer's state while it works."""

    context: Context
    workshop: Workshop
    queue: CandidateQueue
    generation: Generation | None
    best: Best
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="compile"))
    working: Future[Any] | None = None
    architectures: ArchitectureCache = field(default_factory=ArchitectureCache)

    def poll(self) -> bool:
        """Return to MPI, between steps and while waiting; whether the run ends. Raises GenerationError where the making
        of the next candidate failed, which is no fault of the trial that runs."""
        with self.context.timer("communicate"):
            stop = self.context.windows.messages.stop_requested() is not None
            if self.generation is not None and not stop:
                try:
                    self.generation.advance()
                except Exception as error:
                    raise GenerationError(f"the next candidate: {type(error).__name__}: {error}") from error
        return stop


def in_thread(replica: Replica, phase: str, seconds: float, work: Callable[[], T]) -> T | None:
    """What `work` returns, in a thread, while this one looks after MPI every `seconds`; None when the run ends."""
    context = replica.context
    replica.working = future = replica.worker.submit(work)
    while not future.done():
        if replica.poll() or context.over():
            return None
        context.pause(seconds, phase)
    replica.working = None
    return future.result()
