# SPDX-License-Identifier: Apache-2.0
"""A read-only snapshot of the history at one length, as the search and the generators use it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate, own_morphs
from aiperf_mpi.trials.log import HistoryLog
from aiperf_mpi.trials.lru import LruCache
from aiperf_mpi.trials.record import RecordError

#: Finished trials needed before the surrogate is used, and before candidates can be stale
#: (benchmarks/search_start.py compares 2, 3, 4 and 8).
START = 3

#: Trials of the optimised rounds with random cells of hyperparameters, before the optimiser is asked. Those
#: with and without a tuned kernel count together.
DESIGN = 3


class ArchitectureCache(LruCache[int, Architecture]):
    """The architectures replayed most recently, by trial id; a generator keeps one across its snapshots."""

    def __init__(self, capacity: int = 2048) -> None:
        super().__init__(capacity)


class HistoryView:
    """What the search knows at one length of the history.

    Pure: a view is built from summaries, and it reads records on demand.

    Arguments:
        summaries: the visible rows (dtype SUMMARY_DTYPE).
        record: reads the full record of a slot, such as `HistoryLog.record`.
        initial: the architecture of trial 0, which has no parent.
        cache: where replayed architectures are kept; share one among the views of one log.
        inherit: whether children inherit weights, so that only trials whose weights are kept may be parents.

    Attributes (arrays of trial ids are int64):
        length: number of rows of the history that the view covers.
        cache: where replayed architectures are kept, shared by all views of one log.
        proposed: ids of all trials, ascending.
        pending: ids of the trials without an outcome.
        finished: ids of the trials that succeeded with a finite value, in the order in which they ended.
        values: the error of each finished trial that the search uses (float32; predicted in the warm-up).
        predicted: whether that value is predicted (bool).
        parents: ids of the finished trials that may be parents, in the same order. With `inherit` these are
            the trials whose weights are kept, and trial 0, whose initial weights follow from its seed;
            otherwise all.
        parent_values: the error of each possible parent that the search uses.
    """

    def __init__(
        self,
        summaries: np.ndarray,
        record: Callable[[int], np.void],
        initial: Architecture,
        cache: ArchitectureCache | None = None,
        inherit: bool = False,
    ) -> None:
        self.initial = initial
        self.length = len(summaries)
        self.summaries = summaries = np.asarray(summaries)
        self._record = record
        self.cache = ArchitectureCache() if cache is None else cache

        # The first outcome of a trial counts; a second one would be a writer's error.
        kind = summaries["kind"]
        self.proposed = np.flatnonzero(kind == rec.PROPOSED)
        outcomes = np.flatnonzero(kind == rec.OUTCOME)
        trials = summaries["trial"][outcomes]
        known = (trials >= 0) & (trials < self.length)
        known[known] = kind[trials[known]] == rec.PROPOSED
        outcomes, trials = outcomes[known], trials[known]
        self._outcome = np.full(self.length, -1, np.int64)
        self._outcome[trials[::-1]] = outcomes[::-1]

        self.pending = self.proposed[self._outcome[self.proposed] < 0]
        first = outcomes[self._outcome[trials] == outcomes]
        good = np.isin(summaries["status"][first], rec.SUCCESSES) & np.isfinite(summaries["value"][first])
        self.finished = summaries["trial"][first[good]].astype(np.int64)
        self.values = summaries["value"][first[good]]
        self.predicted = (summaries["flags"][first[good]] & rec.PREDICTED).astype(bool)

        # Weights are kept from the trial's outcome until it is withdrawn, in whatever order the two records
        # appear.
        self._kept = np.zeros(self.length, bool)
        kept = first[(summaries["flags"][first] & rec.KEPT).astype(bool)]
        withdrawn = summaries["trial"][kind == rec.WITHDRAWN]
        self._kept[summaries["trial"][kept]] = True
        self._kept[withdrawn[(withdrawn >= 0) & (withdrawn < self.length)]] = False
        self.parents, self.parent_values = self.finished, self.values
        self._inherit = inherit
        if inherit:
            eligible = self._kept[self.finished] | (self.finished == 0)
            self.parents, self.parent_values = self.finished[eligible], self.values[eligible]

    @staticmethod
    def of(
        log: HistoryLog, initial: Architecture, cache: ArchitectureCache | None = None, inherit: bool = False
    ) -> HistoryView:
        """Return the snapshot of the rows that `log` shows since its last refresh."""
        return HistoryView(log.summaries(), log.record, initial, cache, inherit)

    def may_be_parent(self, trial_id: int) -> bool:
        """Return whether a trial may have children, as far as its weights are concerned.

        Raises KeyError for an unknown trial.
        """
        return not self._inherit or trial_id == 0 or self.keeps(trial_id)

    def of_parents(self) -> HistoryView:
        """Return the same snapshot, as if only `parents` had finished."""
        view = copy.copy(self)
        chosen = np.isin(self.finished, self.parents)
        view.finished, view.values, view.predicted = self.parents, self.parent_values, self.predicted[chosen]
        return view

    def keeps(self, trial_id: int) -> bool:
        """Return whether the weights of a trial are kept. Raises KeyError for an unknown trial."""
        self._require(trial_id)
        return bool(self._kept[trial_id])

    @property
    def best(self) -> tuple[int, float] | None:
        """(trial id, error) of the best finished trial, the first of equals; None without one."""
        if not len(self.finished):
            return None
        index = int(np.argmin(self.values))
        return int(self.finished[index]), float(self.values[index])

    def status(self, trial_id: int) -> int:
        """Return how a trial ended (DONE, STOPPED, ...), NONE while it is pending.

        Raises KeyError for an unknown trial.
        """
        self._require(trial_id)
        outcome = self._outcome[trial_id]
        return rec.NONE if outcome < 0 else int(self.summaries["status"][outcome])

    def value(self, trial_id: int) -> float:
        """Return the error that the search uses for a trial; NaN if it has none.

        Raises KeyError for an unknown trial.
        """
        self._require(trial_id)
        outcome = self._outcome[trial_id]
        return float("nan") if outcome < 0 else float(self.summaries["value"][outcome])

    def children(self, trial_id: int) -> np.ndarray:
        """Return the ids of the trials proposed as children of a trial, ascending (int64).

        Raises KeyError for an unknown trial.
        """
        self._require(trial_id)
        return self.proposed[self.summaries["parent"][self.proposed] == trial_id]

    def record(self, trial_id: int) -> np.void:
        """Return the PROPOSED record of a trial. Raises KeyError for an unknown trial."""
        self._require(trial_id)
        return self._record(trial_id)

    def outcome(self, trial_id: int) -> np.void | None:
        """Return the OUTCOME record of a trial, None while it is pending.

        Raises KeyError for an unknown trial.
        """
        self._require(trial_id)
        slot = int(self._outcome[trial_id])
        return None if slot < 0 else self._record(slot)

    def architecture(self, trial_id: int) -> Architecture:
        """Return the architecture of a trial, replayed from the nearest known ancestor.

        Raises KeyError for an unknown trial. Raises RecordError if a record on the way is torn, or if its
        replayed hash differs. The hash of a successful trial is not checked again: its trainer has compared
        it.
        """
        known = self.cache.get(trial_id)
        return self._replay(trial_id) if known is None else known

    def candidate(self, trial_id: int) -> Candidate:
        """Return the whole candidate of a trial. Raises as `architecture` does."""
        record = self.record(trial_id)
        parent = int(record["parent"])
        return Candidate.from_record(
            record, self.initial if parent < 0 else self.architecture(parent), trial_id
        )

    def _replay(self, trial_id: int) -> Architecture:
        # Walk up to a known ancestor, then replay down. Loops, because a lineage may be longer than Python's
        # stack.
        lineage: list[tuple[int, np.void]] = []
        parent, known = trial_id, None
        while known is None:
            self._require(parent)
            record = self._record(parent)
            lineage.append((parent, record))
            above = int(record["parent"])
            if above >= parent or (above < 0) != (parent == 0):
                raise RecordError(f"record of trial {parent}: its parent {above} does not come before it")
            parent = above
            known = self.initial if parent < 0 else self.cache.get(parent)

        # Comparing the hash costs more than replaying; for a successful trial its trainer has compared it.
        for descendant, record in reversed(lineage):
            if self.status(descendant) in rec.SUCCESSES:
                known = known.apply(*own_morphs(record, descendant))
            else:
                known = Candidate.from_record(record, known, descendant).architecture
            self.cache.put(descendant, known)
        return known

    def _require(self, trial_id: int) -> None:
        if not 0 <= trial_id < self.length or self.summaries["kind"][trial_id] != rec.PROPOSED:
            raise KeyError(f"history: slot {trial_id} of {self.length} is not a trial")
