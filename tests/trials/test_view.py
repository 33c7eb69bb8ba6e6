# SPDX-License-Identifier: Apache-2.0
"""The snapshot of the history that the search reads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture, Base, Morph
from aiperf_mpi.network.morphism import eligible_morphs
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate, candidate_key
from aiperf_mpi.trials.record import RecordError
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView
from tests.helpers.trials.twins import ArrayHistory

SMALL = Base(image_size=32, channels=1, classes=10, width=4)
INITIAL = Architecture(SMALL)


def propose(log: ArrayHistory, parent: Candidate | None, *own: Morph) -> Candidate:
    """Return a child of `parent` (None: the initial architecture) as a candidate, proposed in `log`."""
    architecture = parent.architecture.apply(*own) if parent else INITIAL
    candidate = Candidate.new(
        architecture,
        own,
        parent_id=parent.trial_id if parent else -1,
        replica=0,
        generator=0,
        round=1,
        batch_per_device=32,
        devices=1,
        seed=0,
    )
    return dataclasses.replace(candidate, trial_id=log.append(candidate.to_record(0.0)))


def test_what_a_view_knows() -> None:
    log = ArrayHistory(32)
    root = propose(log, None)
    good = propose(log, root, Morph("deeper", 5, 0, 3))
    failed = propose(log, root, Morph("wider", 8))
    warm = propose(log, good, Morph("skip", 2, 9))
    waiting = propose(log, good, Morph("kernel", 4, 0, 3))
    diverged = propose(log, root, Morph("wider", 20))
    log.append(warm.outcome(rec.DONE, 1.0, best_error=0.5, predicted_error=0.125))
    log.append(root.outcome(rec.DONE, 2.0, best_error=0.5))
    log.append(failed.outcome(rec.FAILED, 3.0, best_error=0.0625, cause="made to raise"))
    log.append(good.outcome(rec.STOPPED, 4.0, best_error=0.25))
    log.append(diverged.outcome(rec.DONE, 5.0))
    log.refresh()
    view = HistoryView.of(log, INITIAL)

    assert view.length == 11
    assert list(view.proposed) == [0, 1, 2, 3, 4, 5]
    assert list(view.pending) == [waiting.trial_id]
    # In the order in which they ended, without the failed trial and the one without a value.
    assert list(view.finished) == [warm.trial_id, root.trial_id, good.trial_id]
    assert list(view.values) == [0.125, 0.5, 0.25]
    assert list(view.predicted) == [True, False, False]
    assert view.best == (warm.trial_id, 0.125)
    assert list(view.children(root.trial_id)) == [1, 2, 5] and list(view.children(good.trial_id)) == [3, 4]
    assert [view.status(i) for i in range(6)] == [
        rec.DONE,
        rec.STOPPED,
        rec.FAILED,
        rec.DONE,
        rec.NONE,
        rec.DONE,
    ]
    assert np.isnan([view.value(i) for i in (2, 4, 5)]).all() and view.value(1) == 0.25
    assert [view.candidate(i) for i in range(6)] == [root, good, failed, warm, waiting, diverged]
    outcome = view.outcome(failed.trial_id)
    assert outcome is not None and outcome["cause"] == b"made to raise"
    assert view.outcome(waiting.trial_id) is None
    for slot in (-1, 6, 11, 400):
        with pytest.raises(KeyError, match="not a trial"):
            view.architecture(slot)


def test_parents_where_weights_are_inherited() -> None:
    log = ArrayHistory(32)
    root = propose(log, None)
    kept, lost, never, failed = (propose(log, root, Morph("deeper", unit, 0, 3)) for unit in (5, 6, 7, 8))
    log.append(kept.outcome(rec.DONE, 1.0, best_error=0.5, kept=True))
    log.append(lost.outcome(rec.DONE, 2.0, best_error=0.25, kept=True))
    log.append(never.outcome(rec.DONE, 3.0, best_error=0.75))
    log.append(failed.outcome(rec.FAILED, 3.0, best_error=0.5, kept=True))
    log.refresh()
    view = HistoryView.of(log, INITIAL, inherit=True)
    assert list(view.parents) == [kept.trial_id, lost.trial_id] and list(view.parent_values) == [0.5, 0.25]
    assert list(view.finished) == [kept.trial_id, lost.trial_id, never.trial_id]

    # A withdrawn trial may not be a parent any more, but is still finished. Trial 0 may be a parent as soon
    # as it has a result, kept or not.
    log.append(rec.withdrawal(lost.trial_id, 0, 4.0))
    log.append(rec.withdrawal(77, 0, 4.0))  # of no trial
    log.append(root.outcome(rec.DONE, 5.0, best_error=0.125))
    log.refresh()
    later = HistoryView.of(log, INITIAL, inherit=True)
    assert list(later.parents) == [kept.trial_id, root.trial_id] and list(later.parent_values) == [0.5, 0.125]
    assert [later.keeps(i) for i in range(4)] == [False, True, False, False]
    assert [view.keeps(i) for i in range(4)] == [False, True, True, False], "a view does not change"
    with pytest.raises(KeyError, match="not a trial"):
        later.keeps(later.length - 1)

    assert [later.may_be_parent(int(i)) for i in later.finished] == [True, False, False, True]
    limited = later.of_parents()
    assert list(limited.finished) == list(limited.parents) == [kept.trial_id, root.trial_id]
    assert list(limited.values) == [0.5, 0.125] and list(limited.predicted) == [False, False]
    assert len(later.finished) == 4 and limited.length == later.length and limited.keeps(kept.trial_id)

    # Without inheritance each finished trial may be a parent, whatever is kept.
    free = HistoryView.of(log, INITIAL)
    assert all(free.may_be_parent(int(i)) for i in free.finished)
    assert list(free.parents) == list(free.finished) == list(later.finished)
    assert list(free.parent_values) == list(free.values)


def test_an_empty_history_has_a_view() -> None:
    view = HistoryView.of(ArrayHistory(4), INITIAL)
    assert (view.length, view.best, len(view.pending), len(view.finished)) == (0, None, 0, 0)
    with pytest.raises(KeyError):
        view.architecture(0)


def test_a_view_does_not_change_when_the_log_grows() -> None:
    log = ArrayHistory(8)
    root = propose(log, None)
    log.refresh()
    view = HistoryView.of(log, INITIAL)
    log.append(root.outcome(rec.DONE, 1.0, best_error=0.5))
    log.refresh()
    assert view.length == 1 and list(view.pending) == [0] and view.best is None
    assert HistoryView.of(log, INITIAL).best == (0, 0.5)


def test_abandoned_slots_and_stray_outcomes_are_ignored() -> None:
    log = ArrayHistory(8)
    root = propose(log, None)
    log.abandon(log.reserve())
    log.append(
        dataclasses.replace(root, trial_id=1).outcome(rec.DONE, 1.0, best_error=0.125)
    )  # of an abandoned slot
    log.append(dataclasses.replace(root, trial_id=77).outcome(rec.DONE, 1.0, best_error=0.125))  # of none
    log.append(root.outcome(rec.DONE, 1.0, best_error=0.5))
    log.append(root.outcome(rec.DONE, 2.0, best_error=0.25))  # a second outcome: the first counts
    log.refresh()
    view = HistoryView.of(log, INITIAL)
    assert list(view.proposed) == [0] and list(view.finished) == [0] and list(view.values) == [0.5]


def test_architectures_are_replayed_once() -> None:
    log = ArrayHistory(16)
    line = [propose(log, None)]
    for unit in range(2, 9):
        line.append(propose(log, line[-1], Morph("deeper", unit, 0, 3)))
    log.refresh()
    reads: list[int] = []

    def record(slot: int) -> np.void:
        reads.append(slot)
        return log.record(slot)

    cache = ArchitectureCache()
    view = HistoryView(log.summaries(), record, INITIAL, cache)
    assert reads == [], "building a view reads no record"
    assert view.architecture(7) == line[7].architecture
    assert reads == [7, 6, 5, 4, 3, 2, 1, 0]
    assert view.architecture(4) == line[4].architecture and len(reads) == 8
    again = HistoryView(log.summaries(), record, INITIAL, cache)
    assert again.architecture(7) == line[7].architecture and len(reads) == 8


def test_a_small_cache_only_costs_time() -> None:
    log = ArrayHistory(16)
    line = [propose(log, None)]
    for unit in range(2, 9):
        line.append(propose(log, line[-1], Morph("deeper", unit, 0, 3)))
    log.refresh()
    view = HistoryView.of(log, INITIAL, ArchitectureCache(2))
    assert [view.architecture(i) for i in (7, 0, 6, 3)] == [line[i].architecture for i in (7, 0, 6, 3)]


def test_a_lineage_may_be_longer_than_pythons_stack() -> None:
    # 1,050 generations of one skip each, of the 1,113 that ResNet-50 can take; Python's stack holds 1,000
    # calls.
    skips = eligible_morphs(INITIAL, ("skip",))[:1050]
    log = ArrayHistory(1200)
    candidate = propose(log, None)
    for skip in skips:
        architecture = candidate.architecture.apply(skip)
        key = candidate_key(architecture.hash, 32)
        candidate = dataclasses.replace(
            candidate, parent_id=candidate.trial_id, architecture=architecture, own_morphs=(skip,), key=key
        )
        candidate = dataclasses.replace(candidate, trial_id=log.append(candidate.to_record(0.0)))
    log.refresh()
    assert HistoryView.of(log, INITIAL).architecture(1050) == candidate.architecture


def test_a_record_with_another_parent_is_an_error() -> None:
    log = ArrayHistory(8)
    root = propose(log, None)
    propose(log, root, Morph("wider", 8))
    record = log._storage.records[1]
    record["parent"] = 1
    log._storage.records[1] = rec.seal(record)
    log.refresh()
    with pytest.raises(RecordError, match="does not come before"):
        HistoryView.of(log, INITIAL).architecture(1)
    with pytest.raises(RecordError, match="right parent"):
        HistoryView.of(log, Architecture(Base(width=8))).architecture(0)


def test_a_million_rows_make_a_view_quickly() -> None:
    log = ArrayHistory(4)
    root = propose(log, None)
    log.append(root.outcome(rec.DONE, 1.0, best_error=0.5))
    log.refresh()
    rows = np.tile(log.summaries(), 500_000)
    rows["trial"][1::2] = np.arange(0, 1_000_000, 2)
    view = HistoryView(rows, log.record, INITIAL)
    assert len(view.finished) == 500_000 and len(view.pending) == 0
