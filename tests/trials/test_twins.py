# SPDX-License-Identifier: Apache-2.0
"""The in-memory log and table of claims do what their interfaces promise, between threads too."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.log import HistoryFull, HistoryLog
from tests.helpers.trials.twins import ArrayClaims, ArrayHistory, ClaimTable


def numbered(number: int) -> np.void:
    """Return a sealed record that carries a number."""
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


def test_a_reserved_slot_hides_later_slots() -> None:
    log = ArrayHistory(8)
    log.append(numbered(0))
    slot = log.reserve()
    log.append(numbered(2))
    assert log.refresh() == 1
    assert log.commit(slot, numbered(1))
    assert log.refresh() == 2
    assert list(log.summaries()["round"]) == [0, 1, 2]


def test_an_abandoned_slot_hides_nothing_and_stays_abandoned() -> None:
    log = ArrayHistory(8)
    slot = log.reserve()
    log.append(numbered(1))
    assert log.refresh() == 0
    assert log.abandon(slot)
    assert log.refresh() == 2
    assert log.summaries()["kind"][0] == rec.ABANDONED
    with pytest.raises(KeyError, match="abandoned"):
        log.record(slot)
    # The writer was only slow: its commit is refused, because a visible slot never changes.
    assert not log.commit(slot, numbered(0))
    assert not log.abandon(1)
    assert log.summaries()["kind"][0] == rec.ABANDONED


def test_a_full_log_raises_and_keeps_its_rows() -> None:
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


def test_concurrent_threads_lose_and_tear_no_record() -> None:
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


def test_a_full_table_raises_but_knows_its_keys() -> None:
    claims = ArrayClaims(2)
    assert claims.claim(1) and claims.claim(2) and not claims.claim(1)
    with pytest.raises(HistoryFull, match="all 2 places"):
        claims.claim(3)
    claims.release(1)  # its place stays taken: only the same key can use it again
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
