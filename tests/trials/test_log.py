# SPDX-License-Identifier: Apache-2.0
"""The log and the claims in memory, and the snapshot that the search reads."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture, Base, Morph
from aiperf_mpi.network.morphism import eligible_morphs
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.log import ArrayClaims, ArrayHistory, ClaimTable, HistoryFull, HistoryLog
from aiperf_mpi.trials.record import Candidate, RecordError
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView

SMALL = Base(image_size=32, channels=1, classes=10, width=4)
INITIAL = Architecture(SMALL)


def propose(log: ArrayHistory, parent: Candidate | None, *own: Morph) -> Candidate:
    """A candidate behind `parent` (None for the initial one), proposed in `log`."""
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


def numbered(number: int) -> np.void:
    """A sealed record that carries a number."""
    record = rec.new_record()
    record["kind"], record["round"] = rec.PROPOSED, number
    return rec.seal(record)


# -- the log ---------------------------------------------------------------------------------------


def test_the_twins_keep_the_interface() -> None:
    log: HistoryLog = ArrayHistory(4)
    claims: ClaimTable = ArrayClaims(4)
    assert len(log) == 0 and claims.claim(1)


def test_rows_appear_at_a_refresh_and_stay() -> None:
    log = ArrayHistory(8)
    assert [log.append(numbered(n)) for n in range(3)] == [0, 1, 2]
    assert len(log) == 0 and len(log.summaries()) == 0
    assert log.refresh() == 3 and log.refresh() == 0
    assert list(log.summaries()["round"]) == [0, 1, 2]
    assert int(log.record(2)["round"]) == 2
    with pytest.raises(IndexError, match="slot 3"):
        log.record(3)


def test_a_reserved_slot_hides_what_comes_behind_it() -> None:
    log = ArrayHistory(8)
    log.append(numbered(0))
    slot = log.reserve()
    log.append(numbered(2))
    assert log.refresh() == 1
    assert log.commit(slot, numbered(1))
    assert log.refresh() == 2
    assert list(log.summaries()["round"]) == [0, 1, 2]


def test_an_abandoned_slot_lets_the_others_pass_and_takes_nothing_more() -> None:
    log = ArrayHistory(8)
    slot = log.reserve()
    log.append(numbered(1))
    assert log.refresh() == 0
    assert log.abandon(slot)
    assert log.refresh() == 2
    assert log.summaries()["kind"][0] == rec.ABANDONED
    with pytest.raises(KeyError, match="abandoned"):
        log.record(slot)
    # The writer was only slow: its commit is refused, so a slot never changes once it was seen.
    assert not log.commit(slot, numbered(0))
    assert not log.abandon(1)
    assert log.summaries()["kind"][0] == rec.ABANDONED


def test_a_full_log_says_so_and_keeps_its_rows() -> None:
    log = ArrayHistory(2)
    log.append(numbered(0))
    log.append(numbered(1))
    for _ in range(2):
        with pytest.raises(HistoryFull, match="all 2 slots"):
            log.append(numbered(2))
    assert log.refresh() == 2


def test_readers_see_the_same_prefix_each_at_its_time() -> None:
    log = ArrayHistory(8)
    other = log.reader()
    log.append(numbered(0))
    log.refresh()
    log.append(numbered(1))
    assert other.refresh() == 2 and len(log) == 1
    assert other.summaries()[:1].tobytes() == log.summaries().tobytes()


def test_summaries_are_read_only_and_keep_their_length() -> None:
    log = ArrayHistory(8)
    log.append(numbered(0))
    log.refresh()
    snapshot = log.summaries()
    log.append(numbered(1))
    log.refresh()
    assert len(snapshot) == 1
    with pytest.raises(ValueError):
        snapshot["round"] = 9


def test_an_unsealed_record_is_refused() -> None:
    log = ArrayHistory(8)
    with pytest.raises(ValueError, match="not sealed"):
        log.append(rec.new_record())
    assert log.reserve() == 0, "a refused record must not leave a hole"
    with pytest.raises(ValueError, match="not sealed"):
        log.commit(0, rec.new_record())
    with pytest.raises(IndexError, match="never reserved"):
        log.commit(1, numbered(0))


def test_a_storm_of_threads_loses_and_tears_nothing() -> None:
    log, rows = ArrayHistory(4 * 200), 200
    slots: list[list[int]] = [[] for _ in range(4)]

    def write(writer: int) -> None:
        slots[writer] += [log.append(numbered(writer * rows + n)) for n in range(rows)]

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    seen = 0
    reader = log.reader()
    while any(thread.is_alive() for thread in threads):
        seen += reader.refresh()
    for thread in threads:
        thread.join()
    seen += reader.refresh()
    assert seen == 4 * rows
    for writer in range(4):
        assert [int(reader.record(slot)["round"]) for slot in slots[writer]] == list(
            range(writer * rows, (writer + 1) * rows)
        )
    assert all(rec.check(reader.record(slot)) for slot in range(seen))


# -- claims ----------------------------------------------------------------------------------------


def test_a_key_is_claimed_once_until_released() -> None:
    claims = ArrayClaims(4)
    assert claims.claim(7) and not claims.claim(7) and claims.claim(8)
    claims.release(7)
    assert claims.claim(7) and not claims.claim(7)


def test_release_needs_a_claim() -> None:
    claims = ArrayClaims(4)
    with pytest.raises(KeyError, match="not claimed"):
        claims.release(7)
    claims.claim(7)
    claims.release(7)
    with pytest.raises(KeyError, match="not claimed"):
        claims.release(7)


def test_a_full_table_says_so_but_knows_its_keys() -> None:
    claims = ArrayClaims(2)
    assert claims.claim(1) and claims.claim(2) and not claims.claim(1)
    with pytest.raises(HistoryFull, match="all 2 places"):
        claims.claim(3)
    claims.release(1)  # its place stays: only the same key takes it again
    with pytest.raises(HistoryFull):
        claims.claim(3)
    assert claims.claim(1)


@pytest.mark.parametrize("key", [0, -1, 1 << 64])
def test_a_key_is_a_positive_64_bit_number(key: int) -> None:
    with pytest.raises(ValueError, match="key"):
        ArrayClaims(2).claim(key)


def test_threads_share_one_winner_per_key() -> None:
    claims, wins = ArrayClaims(600), [0] * 4

    def grab(worker: int) -> None:
        wins[worker] = sum(claims.claim(key) for key in range(1, 501))

    threads = [threading.Thread(target=grab, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wins) == 500


# -- the snapshot ----------------------------------------------------------------------------------


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
    # In the order in which they ended; neither the failed one nor one without a value.
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
        with pytest.raises(KeyError, match="no trial"):
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

    # What is withdrawn is no parent any more, yet a result; trial 0 is one as soon as it has a result, kept
    # or not.
    log.append(rec.withdrawal(lost.trial_id, 0, 4.0))
    log.append(rec.withdrawal(77, 0, 4.0))  # of no trial
    log.append(root.outcome(rec.DONE, 5.0, best_error=0.125))
    log.refresh()
    later = HistoryView.of(log, INITIAL, inherit=True)
    assert list(later.parents) == [kept.trial_id, root.trial_id] and list(later.parent_values) == [0.5, 0.125]
    assert [later.keeps(i) for i in range(4)] == [False, True, False, False]
    assert [view.keeps(i) for i in range(4)] == [False, True, True, False], "a view does not change"
    with pytest.raises(KeyError, match="no trial"):
        later.keeps(later.length - 1)

    assert [later.may_be_parent(int(i)) for i in later.finished] == [True, False, False, True]
    limited = later.of_parents()
    assert list(limited.finished) == list(limited.parents) == [kept.trial_id, root.trial_id]
    assert list(limited.values) == [0.5, 0.125] and list(limited.predicted) == [False, False]
    assert len(later.finished) == 4 and limited.length == later.length and limited.keeps(kept.trial_id)

    # Without inheritance every finished trial may be a parent, whatever is kept.
    free = HistoryView.of(log, INITIAL)
    assert all(free.may_be_parent(int(i)) for i in free.finished)
    assert list(free.parents) == list(free.finished) == list(later.finished)
    assert list(free.parent_values) == list(free.values)


def test_an_empty_history_is_a_view_too() -> None:
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


def test_abandoned_slots_and_stray_outcomes_are_nobody() -> None:
    log = ArrayHistory(8)
    root = propose(log, None)
    log.abandon(log.reserve())
    log.append(
        dataclasses.replace(root, trial_id=1).outcome(rec.DONE, 1.0, best_error=0.125)
    )  # of an abandoned slot
    log.append(dataclasses.replace(root, trial_id=77).outcome(rec.DONE, 1.0, best_error=0.125))  # of none
    log.append(root.outcome(rec.DONE, 1.0, best_error=0.5))
    log.append(root.outcome(rec.DONE, 2.0, best_error=0.25))  # a second end: the first holds
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
        key = rec.candidate_key(architecture.hash, 32)
        candidate = dataclasses.replace(
            candidate, parent_id=candidate.trial_id, architecture=architecture, own_morphs=(skip,), key=key
        )
        candidate = dataclasses.replace(candidate, trial_id=log.append(candidate.to_record(0.0)))
    log.refresh()
    assert HistoryView.of(log, INITIAL).architecture(1050) == candidate.architecture


def test_a_wrong_lineage_is_an_error_not_a_wrong_network() -> None:
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
