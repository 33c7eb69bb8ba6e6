# SPDX-License-Identifier: Apache-2.0
"""Read records of the history for a thread that may not call MPI: it asks, and the main thread answers.

Each question waits for a poll of the main thread. A search that learns from many trials therefore asks for
all its records beforehand, and gets them in a few answers.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from aiperf_mpi.search.knowledge import MOST_PENDING, chosen, refit_length
from aiperf_mpi.trials.record import ABANDONED
from aiperf_mpi.trials.view import START, HistoryView

#: Most records in one answer. Reading them takes the main thread some milliseconds, in which a training step
#: may wait.
BATCH = 256


class RecordReader:
    """Hands records from the main thread, which reads them, to the maker's thread.

    Arguments:
        read: returns the records of several visible slots, such as `WindowHistory.records`; called only on
            the main thread.

    Attributes:
        answers: number of answers of the main thread.
    """

    def __init__(self, read: Callable[[Sequence[int]], list[np.void]]) -> None:
        self._read = read
        self._questions: queue.Queue[tuple[Sequence[int], Future[list[np.void]]]] = queue.Queue()
        self._ahead: dict[int, np.void] = {}
        self.answers = 0

    # -- the maker's thread

    def record(self, slot: int) -> np.void:
        """Wait for the main thread, and return the record of a slot. Raises errors of the reading."""
        kept = self._ahead.get(slot)
        return self._ask([slot])[0] if kept is None else kept.copy()

    def read_ahead(self, slots: Sequence[int]) -> None:
        """Fetch records for later calls of `record`, and drop those of an earlier call. Raises as `record`
        does."""
        self._ahead = {}
        for first in range(0, len(slots), BATCH):
            batch = slots[first : first + BATCH]
            self._ahead.update(zip(batch, self._ask(batch), strict=True))

    def _ask(self, slots: Sequence[int]) -> list[np.void]:
        answer: Future[list[np.void]] = Future()
        self._questions.put((slots, answer))
        return answer.result()

    # -- the main thread

    def serve(self) -> None:
        """Answer all questions."""
        while True:
            try:
                slots, answer = self._questions.get_nowait()
            except queue.Empty:
                return
            self.answers += 1
            try:
                answer.set_result(self._read(slots))
            except Exception as error:
                answer.set_exception(error)


def learnt_slots(view: HistoryView) -> list[int]:
    """Return the slots whose records the Bayesian search reads at `view`, ascending: those of the trials that
    it learns from, and those of their ancestors whose architectures are not yet known."""
    if len(view.finished) < START:
        return []
    length = refit_length(len(view.finished), START)
    trials = np.concatenate(
        (view.finished[chosen(view, length)], view.finished[length:], view.pending[-MOST_PENDING:])
    )
    parents, kinds = view.summaries["parent"], view.summaries["kind"]
    slots: set[int] = set()
    for slot in trials.tolist():
        while 0 <= slot < view.length and slot not in slots and view.cache.get(slot) is None:
            if kinds[slot] == ABANDONED:
                break
            slots.add(slot)
            slot = int(parents[slot])
    return sorted(slots)
