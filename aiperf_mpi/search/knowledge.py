# SPDX-License-Identifier: Apache-2.0
"""What the search knows at one length of the history: the surrogate, and the trials that it has learnt from.

Knowledge is a pure function of the history. Hyperparameters and Cholesky factor are refitted at fixed numbers
of finished trials (refit lengths); later trials are appended. Generators that read the history at different
times, or never before, therefore know the same. What a generator keeps from an earlier read only saves work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aiperf_mpi.network.architecture import Base
from aiperf_mpi.search.acquisition import Chain
from aiperf_mpi.search.features import features, plan_of
from aiperf_mpi.search.surrogate import Observations, Process, learn
from aiperf_mpi.trials.lru import LruCache
from aiperf_mpi.trials.record import RecordError
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView

#: Maximum number of finished trials between two refits; otherwise an eighth of those at the earlier one.
LONGEST_STEP = 128

#: Maximum number of finished trials that a refit learns from, and of pending trials (the youngest) that
#: count.
MOST_ROWS, MOST_PENDING = 1500, 256


class Memory:
    """What a generator keeps from one proposal to the next; it saves time and changes no number.

    Chains are valid for one view cache, which belongs to one log. A process is kept with the data that it was
    learnt from. So data of another history is never used.

    Arguments:
        capacity: number of chains kept, well over those that one proposal needs.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = capacity
        self._cache: ArchitectureCache | None = None
        self._chains: LruCache[int, Chain] = LruCache(capacity)
        self._learnt: tuple[Observations, Process] | None = None

    def chain(self, view: HistoryView, trial_id: int) -> Chain:
        """Return a trial of the view as a chain without morphs. Raises as `view.architecture` does."""
        if self._cache is not view.cache:
            self._cache = view.cache
            self._chains = LruCache(self.capacity)
        kept = self._chains.get(trial_id)
        if kept is None:
            architecture = view.architecture(trial_id)
            kept = Chain(trial_id, (), architecture, features(architecture))
            self._chains.put(trial_id, kept)
        return kept

    def learnt(self, seen: Observations, base: Base) -> Process:
        """Return the process learnt from these observations."""
        if self._learnt is None or not self._learnt[0].same(seen):
            self._learnt = seen, learn(seen, plan_of(base))
        return self._learnt[1]


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What is known at a view.

    Attributes:
        process: the surrogate after all finished trials that it learns from.
        finished: those trials as chains without morphs, in the order in which they ended.
        pending: the pending trials, as chains without morphs.
        eligible: indices in `finished` of the trials that may be parents, ascending (int64).
    """

    process: Process
    finished: list[Chain]
    pending: list[Chain]
    eligible: np.ndarray

    def holds(self, child: Chain) -> bool:
        """Return whether a finished or pending trial has the architecture of `child`."""
        # Compare hashes only among networks of the same size: computing one hash costs more than all else
        # here.
        alike = self._by_size.get((child.features.macs, child.features.parameters), ())
        return any(chain.architecture.hash == child.architecture.hash for chain in alike)

    @cached_property
    def _by_size(self) -> dict[tuple[int, int], list[Chain]]:
        chains: dict[tuple[int, int], list[Chain]] = {}
        for chain in (*self.finished, *self.pending):
            chains.setdefault((chain.features.macs, chain.features.parameters), []).append(chain)
        return chains


def learn_from(view: HistoryView, start: int, memory: Memory) -> Knowledge:
    """Return what is known at `view`, which must have at least `start` >= 1 finished trials."""
    length = refit_length(len(view.finished), start)
    first, later = chosen(view, length), np.arange(length, len(view.finished))
    finished = [memory.chain(view, int(trial)) for trial in view.finished[[*first, *later]]]
    pending = []
    for trial in view.pending[-MOST_PENDING:]:
        try:
            pending.append(memory.chain(view, int(trial)))
        except RecordError:
            # Its trainer will reject it with the reason; it has no architecture to learn from.
            continue

    def seen(places: np.ndarray, chains: list[Chain]) -> Observations:
        rows = tuple(chain.features for chain in chains)
        return Observations(rows, view.values[places].astype(np.float64), view.predicted[places])

    process = memory.learnt(seen(first, finished[: len(first)]), view.initial.base)
    process = process.append(seen(later, finished[len(first) :]))
    eligible = np.flatnonzero([view.may_be_parent(chain.parent_id) for chain in finished])
    return Knowledge(process, finished, pending, eligible)


def refit_length(finished: int, start: int) -> int:
    """Return the number of finished trials that the last refit used; trials that ended later are appended.

    Refits come at `start`, then after an eighth more trials each time, at most 128.
    """
    length = start
    while length < 8 * LONGEST_STEP:
        step = max(1, length // 8)
        if length + step > finished:
            return length
        length += step
    return length + (finished - length) // LONGEST_STEP * LONGEST_STEP


def chosen(view: HistoryView, length: int) -> np.ndarray:
    """Choose the trials to learn from: return their indices in `view.finished`, ascending (int64).

    Up to a `length` of 1,500 trials all are chosen. Beyond that: the 500 best, the 500 youngest, and a random
    sample of the rest.

    Arguments:
        length: number of finished trials to choose from, the first of `view.finished`.
    """
    if length <= MOST_ROWS:
        return np.arange(length)
    share = MOST_ROWS // 3
    taken = np.zeros(length, bool)
    taken[np.argpartition(view.values[:length], share - 1)[:share]] = True
    taken[length - share :] = True

    # Sample the trials with the smallest hash of their id (splitmix64), so that most stay in the sample as
    # the history grows.
    rest = np.flatnonzero(~taken)
    word = view.finished[rest].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    drawn = MOST_ROWS - np.count_nonzero(taken)
    taken[rest[np.argpartition(word, drawn - 1)[:drawn]]] = True
    return np.flatnonzero(taken)
