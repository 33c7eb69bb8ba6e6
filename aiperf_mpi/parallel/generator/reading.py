# SPDX-License-Identifier: Apache-2.0
"""Records of the history for a thread that may not call MPI: it asks, and the main thread answers.

Asking one by one costs a poll of the main thread each, so a search that learns from many trials says
beforehand which records it will read, and gets them in a few answers.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from aiperf_mpi.search.knowledge import MOST_PENDING, chosen, refit_length
from aiperf_mpi.trials.record import ABANDONED
from aiperf_mpi.trials.view import START, HistoryView

#: Records in one answer: some milliseconds of the main thread, which may have to start a training step.
BATCH = 256


class RecordReader:
    """Where the thinking thread asks for records.

    Arguments:
        read: the records of several visible slots, such as `WindowHistory.records`; called on the main thread
            alone.

    Attributes:
        answers: times that the main thread has answered.
    """

    def __init__(self, read: Callable[[Sequence[int]], list[np.void]]) -> None:
        self._read = read
        self._asked: queue.Queue[tuple[Sequence[int], Future[list[np.void]]]] = queue.Queue()
        self._ahead: dict[int, np.void] = {}
        self.answers = 0

    # -- the thinking thread

    def record(self, slot: int) -> np.void:
        """The record of a slot; waits for the main thread. Raises what reading it raises."""
        kept = self._ahead.get(slot)
        return self._ask([slot])[0] if kept is None else kept.copy()

    def read_ahead(self, slots: Sequence[int]) -> None:
        """Fetch what will be asked for; what an earlier call has fetched is forgotten. Raises as `record`
        does."""
        self._ahead = {}
        for first in range(0, len(slots), BATCH):
            batch = slots[first : first + BATCH]
            self._ahead.update(zip(batch, self._ask(batch), strict=True))

    def _ask(self, slots: Sequence[int]) -> list[np.void]:
        answer: Future[list[np.void]] = Future()
        self._asked.put((slots, answer))
        return answer.result()

    # -- the main thread

    def serve(self) -> None:
        """Answer what has been asked."""
        while True:
            try:
                slots, answer = self._asked.get_nowait()
            except queue.Empty:
                return
            self.answers += 1
            try:
                answer.set_result(self._read(slots))
            except Exception as error:
                answer.set_exception(error)


def learnt_slots(view: HistoryView) -> list[int]:
    """Slots whose records the Bayesian search reads at `view`, ascending: those of the trials that it learns
    from, and of the ancestors that lead to them from what has been replayed already."""
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
