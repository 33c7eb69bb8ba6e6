# SPDX-License-Identifier: Apache-2.0
"""The history of all trials: the interfaces of log and claims, their in-memory twins, and a pure snapshot of them.

The log is append-only. A writer reserves a slot, fills it and commits it; a slot whose writer died is abandoned.
Readers see the longest prefix in which every slot is committed or abandoned, so a snapshot is described by its
length alone, and two readers at the same length have seen the same.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import numpy as np

from aiperf_mpi.search import record as rec
from aiperf_mpi.search.architecture import Architecture
from aiperf_mpi.search.record import RECORD_DTYPE, SUMMARY_DTYPE, Candidate, RecordError

#: Finished trials before anything is learnt from them: the surrogate is asked, and candidates can be stale.
START = 8


class HistoryFull(RuntimeError):
    """The log or the table of claims has reached its capacity; the run must drain."""


class HistoryLog(Protocol):
    """An append-only log of sealed records, as one process sees it."""

    def append(self, record: np.void) -> int:
        """Write a sealed record; returns its slot. Raises HistoryFull if there is none left."""

    def refresh(self) -> int:
        """Look for rows that have become visible; returns how many are new. Nothing else extends what is seen."""

    def __len__(self) -> int:
        """Rows visible since the last refresh."""

    def summaries(self) -> np.ndarray:
        """The visible rows (dtype SUMMARY_DTYPE, one per slot, read-only); abandoned slots have kind ABANDONED."""

    def record(self, slot: int) -> np.void:
        """The full record of a visible, committed slot. Raises IndexError beyond it, KeyError if abandoned."""


class ClaimTable(Protocol):
    """Keys of candidates, of which every process may claim one that nobody else has."""

    def claim(self, key: int) -> bool:
        """Claim a non-zero key; True for exactly one caller until it is released. Raises HistoryFull if full."""

    def release(self, key: int) -> None:
        """Give a claimed key back, so that it can be claimed again. Raises KeyError if it is not claimed."""


# -- the in-memory twins ---------------------------------------------------------------------------------------------

_EMPTY, _COMMITTED, _ABANDONED = range(3)


class _Storage:
    """The slots that all readers of an ArrayHistory share."""

    def __init__(self, capacity: int) -> None:
        self.records = np.zeros(capacity, RECORD_DTYPE)
        self.summaries = np.zeros(capacity, SUMMARY_DTYPE)
        self.states = np.full(capacity, _EMPTY, np.uint8)
        self.reserved = 0
        self.lock = threading.Lock()


class ArrayHistory:
    """A HistoryLog in one process's memory, safe between threads.

    Arguments:
        capacity: slots of the log.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"history: capacity is {capacity}, but must be at least 1")
        self._storage = _Storage(capacity)
        self._visible = 0

    def reader(self) -> ArrayHistory:
        """Another view of the same log, which has seen nothing yet."""
        other = object.__new__(ArrayHistory)
        other._storage, other._visible = self._storage, 0
        return other

    @property
    def capacity(self) -> int:
        """Slots of the log."""
        return len(self._storage.states)

    def reserve(self) -> int:
        """Take the next slot; until it is committed or abandoned no reader sees it or any later one."""
        with self._storage.lock:
            if self._storage.reserved == self.capacity:
                raise HistoryFull(f"history: all {self.capacity} slots are taken; raise parallel.history_capacity")
            self._storage.reserved += 1
            return self._storage.reserved - 1

    def commit(self, slot: int, record: np.void) -> bool:
        """Fill a reserved slot; False if it was abandoned meanwhile. Raises ValueError for an unsealed record."""
        if not rec.check(record):
            raise ValueError(f"history: the record for slot {slot} is not sealed, or torn")
        with self._storage.lock:
            if not self._settle(slot, _COMMITTED):
                return False
            self._storage.records[slot] = record
            self._storage.summaries[slot] = rec.summarise(record)
            return True

    def abandon(self, slot: int) -> bool:
        """Give up a reserved slot whose writer died; False if it was committed meanwhile."""
        with self._storage.lock:
            if not self._settle(slot, _ABANDONED):
                return False
            self._storage.summaries[slot] = rec.abandoned_summary()
            return True

    def _settle(self, slot: int, state: int) -> bool:
        if not 0 <= slot < self._storage.reserved:
            raise IndexError(f"history: slot {slot} was never reserved ({self._storage.reserved} are)")
        if self._storage.states[slot] != _EMPTY:
            return False
        self._storage.states[slot] = state
        return True

    def append(self, record: np.void) -> int:
        """Reserve a slot and commit a sealed record in it."""
        if not rec.check(record):
            raise ValueError("history: a record to append is not sealed, or torn")
        slot = self.reserve()
        self.commit(slot, record)
        return slot

    def refresh(self) -> int:
        """See what has been committed or abandoned since, up to the first slot that is neither."""
        with self._storage.lock:
            states = self._storage.states[self._visible : self._storage.reserved]
            open_slots = np.flatnonzero(states == _EMPTY)
            new = int(open_slots[0]) if len(open_slots) else len(states)
        self._visible += new
        return new

    def __len__(self) -> int:
        return self._visible

    def summaries(self) -> np.ndarray:
        """The visible rows, read-only."""
        view = self._storage.summaries[: self._visible]
        view.flags.writeable = False
        return view

    def record(self, slot: int) -> np.void:
        """A copy of the record of a visible slot."""
        if not 0 <= slot < self._visible:
            raise IndexError(f"history: slot {slot} is not visible ({self._visible} rows are)")
        if self._storage.states[slot] == _ABANDONED:
            raise KeyError(f"history: slot {slot} was abandoned")
        return self._storage.records[slot].copy()


class ArrayClaims:
    """A ClaimTable in one process's memory, safe between threads. A released key keeps its place in the table.

    Arguments:
        capacity: different keys that the table can hold.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"claims: capacity is {capacity}, but must be at least 1")
        self.capacity = capacity
        self._claimed: dict[int, bool] = {}
        self._lock = threading.Lock()

    def claim(self, key: int) -> bool:
        """Claim a non-zero key; True for one caller."""
        if not 0 < key < 1 << 64:
            raise ValueError(f"claims: key {key} is not a positive 64-bit number")
        with self._lock:
            if self._claimed.get(key, False):
                return False
            if key not in self._claimed and len(self._claimed) == self.capacity:
                raise HistoryFull(f"claims: all {self.capacity} places are taken; raise parallel.history_capacity")
            self._claimed[key] = True
            return True

    def release(self, key: int) -> None:
        """Give a claimed key back."""
        with self._lock:
            if not self._claimed.get(key, False):
                raise KeyError(f"claims: key {key:#x} is not claimed")
            self._claimed[key] = False


# -- the snapshot ----------------------------------------------------------------------------------------------------


class ArchitectureCache:
    """The architectures replayed most recently, by trial id; a generator keeps one across its snapshots."""

    def __init__(self, capacity: int = 2048) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[int, Architecture] = OrderedDict()

    def get(self, trial_id: int) -> Architecture | None:
        """The architecture if it is here."""
        if trial_id in self._entries:
            self._entries.move_to_end(trial_id)
        return self._entries.get(trial_id)

    def put(self, trial_id: int, architecture: Architecture) -> None:
        """Keep an architecture; the one unused for longest leaves."""
        self._entries[trial_id] = architecture
        self._entries.move_to_end(trial_id)
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)


class HistoryView:
    """What the search knows at one length of the history: pure, built from summaries; records are read on demand.

    Arguments:
        summaries: the visible rows (dtype SUMMARY_DTYPE).
        record: reads the full record of a slot, such as `HistoryLog.record`.
        initial: the architecture of trial 0, which has no parent.
        cache: where replayed architectures are kept; give the same one to the views of one log.
        inherit: whether children inherit weights, so that only trials whose weights are kept may be parents.

    Attributes (arrays of trial ids are int64):
        length: rows of the history that the view is of.
        cache: where replayed architectures are kept, which all views of one log share.
        proposed: ids of all trials, ascending.
        pending: ids of the trials without an outcome.
        finished: ids of the trials that ended well with a finite value, in the order in which they ended.
        values: the error of each finished trial that the search uses (float32; predicted in the warm-up).
        predicted: whether that value is predicted (bool).
        parents: ids of the finished trials that may be parents, in the same order: all, or with `inherit` those whose
            weights are kept, and trial 0, whose initial weights its seed gives again.
        parent_values: the error of each of them that the search uses.
    """

    def __init__(self, summaries: np.ndarray, record: Callable[[int], np.void], initial: Architecture,
                 cache: ArchitectureCache | None = None, inherit: bool = False) -> None:
        self.initial = initial
        self.length = len(summaries)
        self.summaries = summaries = np.asarray(summaries)
        self._record = record
        self.cache = ArchitectureCache() if cache is None else cache

        # The first outcome of a proposed trial holds; there is no second one unless a writer is wrong.
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

        # Weights are kept from the outcome that says so to the record that withdraws them, in whatever order those lie.
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
    def of(log: HistoryLog, initial: Architecture, cache: ArchitectureCache | None = None,
           inherit: bool = False) -> HistoryView:
        """The snapshot of what `log` shows since its last refresh."""
        return HistoryView(log.summaries(), log.record, initial, cache, inherit)

    def may_be_parent(self, trial_id: int) -> bool:
        """Whether a trial may have children as far as weights go. Raises KeyError if there is no such trial."""
        return not self._inherit or trial_id == 0 or self.keeps(trial_id)

    def of_parents(self) -> HistoryView:
        """The same snapshot, but as if only `parents` had finished."""
        view = copy.copy(self)
        chosen = np.isin(self.finished, self.parents)
        view.finished, view.values, view.predicted = self.parents, self.parent_values, self.predicted[chosen]
        return view

    def keeps(self, trial_id: int) -> bool:
        """Whether the weights of a trial are kept. Raises KeyError if there is no such trial."""
        self._require(trial_id)
        return bool(self._kept[trial_id])

    @property
    def best(self) -> tuple[int, float] | None:
        """(trial id, error) of the finished trial with the least error, the earlier of equals; None without one."""
        if not len(self.finished):
            return None
        index = int(np.argmin(self.values))
        return int(self.finished[index]), float(self.values[index])

    def status(self, trial_id: int) -> int:
        """How a trial ended (DONE, STOPPED, ...), NONE while it is pending. Raises KeyError if there is none."""
        self._require(trial_id)
        outcome = self._outcome[trial_id]
        return rec.NONE if outcome < 0 else int(self.summaries["status"][outcome])

    def value(self, trial_id: int) -> float:
        """The error of a trial that the search uses, NaN where there is none. Raises KeyError for no trial."""
        self._require(trial_id)
        outcome = self._outcome[trial_id]
        return float("nan") if outcome < 0 else float(self.summaries["value"][outcome])

    def children(self, trial_id: int) -> np.ndarray:
        """Ids of the trials proposed as children of a trial, ascending (int64)."""
        self._require(trial_id)
        return self.proposed[self.summaries["parent"][self.proposed] == trial_id]

    def record(self, trial_id: int) -> np.void:
        """The PROPOSED record of a trial. Raises KeyError if there is no such trial."""
        self._require(trial_id)
        return self._record(trial_id)

    def outcome(self, trial_id: int) -> np.void | None:
        """The OUTCOME record of a trial, None while it is pending. Raises KeyError if there is no such trial."""
        self._require(trial_id)
        slot = int(self._outcome[trial_id])
        return None if slot < 0 else self._record(slot)

    def architecture(self, trial_id: int) -> Architecture:
        """The architecture of a trial, replayed from the nearest ancestor that is known.

        Raises KeyError if there is no such trial, RecordError if a record on the way is torn, or is not its parent's
        child by its hash (which is left to its trainer where a trial ended well).
        """
        found = self.cache.get(trial_id)
        return self._replay(trial_id) if found is None else found

    def candidate(self, trial_id: int) -> Candidate:
        """The whole candidate of a trial; raises as `architecture` does."""
        record = self.record(trial_id)
        parent = int(record["parent"])
        return Candidate.from_record(record, self.initial if parent < 0 else self.architecture(parent), trial_id)

    def _replay(self, trial_id: int) -> Architecture:
        # Up to an ancestor that is known, then down again; a loop, as lineages may be longer than Python's stack.
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

        # To compare with the hash costs more than to replay; for a trial that ended well its trainer has done so.
        for descendant, record in reversed(lineage):
            if self.status(descendant) in rec.SUCCESSES:
                known = known.apply(*rec.own_morphs(record, descendant))
            else:
                known = Candidate.from_record(record, known, descendant).architecture
            self.cache.put(descendant, known)
        return known

    def _require(self, trial_id: int) -> None:
        if not 0 <= trial_id < self.length or self.summaries["kind"][trial_id] != rec.PROPOSED:
            raise KeyError(f"history: slot {trial_id} of {self.length} is no trial")
