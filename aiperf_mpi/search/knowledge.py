# SPDX-License-Identifier: Apache-2.0
"""What the search knows at one length of the history: the surrogate, and the trials that it has learnt from.

A function of the history alone. Hyperparameters and factor are learnt at certain numbers of finished trials
(anchors), later trials are appended to them, so that generators which have looked at the history at different
times, or never before, know the same; and what they keep from an earlier look saves them work, no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aiperf_mpi.lru import LruCache
from aiperf_mpi.network.architecture import Base
from aiperf_mpi.search.acquisition import Chain
from aiperf_mpi.search.features import features, plan_of
from aiperf_mpi.search.surrogate import Observations, Process, learn
from aiperf_mpi.trials.record import RecordError
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView

#: Finished trials between two anchors, at most; else an eighth of those at the earlier one.
LONGEST_STEP = 128

#: Finished trials that the surrogate learns from at an anchor, and pending ones, the youngest, that it counts
#: in.
MOST_ROWS, MOST_PENDING = 1500, 256


class Memory:
    """What a generator keeps from one proposal to the next; it saves time and changes no number.

    Chains are kept by the views' cache, which belongs to one log, and a process with the very data it was
    learnt from, so that nothing of another history is ever taken for this one.

    Arguments:
        capacity: chains kept, well over those that one proposal needs.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = capacity
        self._cache: ArchitectureCache | None = None
        self._chains: LruCache[int, Chain] = LruCache(capacity)
        self._learnt: tuple[Observations, Process] | None = None

    def chain(self, view: HistoryView, trial_id: int) -> Chain:
        """A trial of the view as a chain without morphs; raises as `view.architecture` does."""
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
        """The process learnt from these observations."""
        if self._learnt is None or not self._learnt[0].same(seen):
            self._learnt = seen, learn(seen, plan_of(base))
        return self._learnt[1]


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What is known at a view.

    Attributes:
        process: the surrogate after all finished trials that it learns from.
        finished, pending: the trials, as chains without morphs; the finished ones in the order in which they
            ended.
        eligible: places in `finished` of those that may be parents, ascending (int64).
    """

    process: Process
    finished: list[Chain]
    pending: list[Chain]
    eligible: np.ndarray

    def holds(self, child: Chain) -> bool:
        """Whether one of their architectures is that of `child`."""
        # The same network has the same size, so that few hashes are needed; each costs more than all else
        # here.
        alike = self._by_size.get((child.features.macs, child.features.parameters), ())
        return any(chain.architecture.hash == child.architecture.hash for chain in alike)

    @cached_property
    def _by_size(self) -> dict[tuple[int, int], list[Chain]]:
        found: dict[tuple[int, int], list[Chain]] = {}
        for chain in (*self.finished, *self.pending):
            found.setdefault((chain.features.macs, chain.features.parameters), []).append(chain)
        return found


def learn_from(view: HistoryView, start: int, memory: Memory) -> Knowledge:
    """What is known at `view`, which has at least `start` >= 1 finished trials."""
    length = refit_length(len(view.finished), start)
    first, later = chosen(view, length), np.arange(length, len(view.finished))
    finished = [memory.chain(view, int(trial)) for trial in view.finished[[*first, *later]]]
    pending = []
    for trial in view.pending[-MOST_PENDING:]:
        try:
            pending.append(memory.chain(view, int(trial)))
        except RecordError:
            # Its trainer rejects it with the reason; until then it says nothing about any architecture.
            continue

    def seen(places: np.ndarray, chains: list[Chain]) -> Observations:
        rows = tuple(chain.features for chain in chains)
        return Observations(rows, view.values[places].astype(np.float64), view.predicted[places])

    process = memory.learnt(seen(first, finished[: len(first)]), view.initial.base)
    process = process.append(seen(later, finished[len(first) :]))
    eligible = np.flatnonzero([view.may_be_parent(chain.parent_id) for chain in finished])
    return Knowledge(process, finished, pending, eligible)


def refit_length(finished: int, start: int) -> int:
    """Of how many finished trials hyperparameters and factor are learnt anew; those that ended later are
    appended.

    From `start` on an eighth more each time, at most 128.
    """
    length = start
    while length < 8 * LONGEST_STEP:
        step = max(1, length // 8)
        if length + step > finished:
            return length
        length += step
    return length + (finished - length) // LONGEST_STEP * LONGEST_STEP


def chosen(view: HistoryView, length: int) -> np.ndarray:
    """Places in `view.finished` of those among the first `length` that are learnt from, ascending (int64).

    All up to 1,500; beyond that the 500 best, the 500 youngest, and of the rest so many by chance.
    """
    if length <= MOST_ROWS:
        return np.arange(length)
    share = MOST_ROWS // 3
    taken = np.zeros(length, bool)
    taken[np.argpartition(view.values[:length], share - 1)[:share]] = True
    taken[length - share :] = True

    # By chance, but mostly the same ones at every length: those with the least hash of their id (splitmix64).
    rest = np.flatnonzero(~taken)
    word = view.finished[rest].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    drawn = MOST_ROWS - np.count_nonzero(taken)
    taken[rest[np.argpartition(word, drawn - 1)[:drawn]]] = True
    return np.flatnonzero(taken)
