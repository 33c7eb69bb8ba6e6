# SPDX-License-Identifier: Apache-2.0
"""Checks that any history log and any table of claims must pass: the in-memory twins and the ones over MPI.

A check takes a fresh log (or table) of CAPACITY places and raises AssertionError if it misbehaves. Those in
HOST_CHECKS abandon slots, which only rank 0 may do over MPI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.log import HistoryFull
from tests.helpers.parallel.rows import outcome, proposed

#: More rows than a refresh requests first, so that it must request more.
CAPACITY = 200


def check_slots_are_numbered_and_visible_after_a_refresh(log: Any) -> None:
    assert [log.append(proposed(round=i)) for i in range(3)] == [0, 1, 2]
    assert len(log) == 0 and len(log.summaries()) == 0
    assert log.refresh() == 3 and len(log) == 3
    assert log.refresh() == 0 and len(log) == 3


def check_rows_are_what_was_written(log: Any) -> None:
    rows = [proposed(3, 7), outcome(0, 0.25, replica=3), proposed(4, 1)]
    for row in rows:
        log.append(row)
    log.refresh()
    summaries = log.summaries()
    assert summaries.dtype == rec.SUMMARY_DTYPE
    assert [s.tobytes() for s in summaries] == [rec.summarise(row).tobytes() for row in rows]
    assert [log.record(i).tobytes() for i in range(3)] == [row.tobytes() for row in rows]


def check_what_is_read_cannot_change_the_log(log: Any) -> None:
    log.append(proposed(round=5))
    log.refresh()
    with pytest.raises(ValueError):
        log.summaries()["round"] = 6
    log.record(0)["round"] = 6
    assert log.record(0)["round"] == 5


def check_a_slot_that_is_not_visible_has_no_record(log: Any) -> None:
    log.append(proposed())
    for slot in (0, 1, -1, CAPACITY):
        with pytest.raises(IndexError):
            log.record(slot)
    log.refresh()
    assert log.record(0)["kind"] == rec.PROPOSED
    with pytest.raises(IndexError):
        log.record(1)


def check_an_open_slot_hides_what_follows(log: Any) -> None:
    first, second = log.reserve(), log.reserve()
    assert (first, second) == (0, 1)
    assert log.commit(second, proposed(round=2)) and log.append(proposed(round=3)) == 2
    assert log.refresh() == 0
    assert log.commit(first, proposed(round=1)) and log.refresh() == 3
    assert log.summaries()["round"].tolist() == [1, 2, 3]


def check_an_unsealed_record_is_refused(log: Any) -> None:
    torn = proposed()
    torn["round"] = 99
    with pytest.raises(ValueError, match="sealed"):
        log.append(torn)
    with pytest.raises(ValueError, match="sealed"):
        log.append(rec.new_record())
    assert log.append(proposed()) == 0


def check_a_full_log_says_so_and_can_be_read(log: Any) -> None:
    for i in range(CAPACITY):
        log.append(proposed(round=i))
    for _ in range(2):
        with pytest.raises(HistoryFull, match="history_capacity"):
            log.append(proposed())
    assert log.refresh() == CAPACITY
    assert log.summaries()["round"].tolist() == list(range(CAPACITY))
    assert log.record(CAPACITY - 1)["round"] == CAPACITY - 1


def check_an_abandoned_slot_is_shown_as_such(log: Any) -> None:
    slot = log.reserve()
    log.append(proposed(round=2))
    assert log.refresh() == 0
    assert log.abandon(slot) and log.refresh() == 2
    assert log.summaries()["kind"].tolist() == [rec.ABANDONED, rec.PROPOSED]
    assert log.summaries()[0].tobytes() == rec.abandoned_summary().tobytes()
    with pytest.raises(KeyError):
        log.record(slot)


def check_a_slot_is_settled_once(log: Any) -> None:
    gone, whole = log.reserve(), log.append(proposed(round=2))
    assert log.abandon(gone) and not log.commit(gone, proposed(round=1))
    assert not log.abandon(whole)
    log.refresh()
    assert log.summaries()["kind"].tolist() == [rec.ABANDONED, rec.PROPOSED]
    with pytest.raises(IndexError):
        log.abandon(2)


def check_one_claim_wins(table: Any) -> None:
    assert table.claim(17) and not table.claim(17)
    assert table.claim(18) and not table.claim(17)


def check_a_released_key_can_be_claimed_again(table: Any) -> None:
    for _ in range(3):
        assert table.claim(17) and not table.claim(17)
        table.release(17)
    assert table.claim(17)


def check_only_what_is_claimed_can_be_released(table: Any) -> None:
    with pytest.raises(KeyError):
        table.release(17)
    assert table.claim(17)
    table.release(17)
    with pytest.raises(KeyError):
        table.release(17)


def check_keys_are_positive_64_bit_numbers(table: Any) -> None:
    for key in (0, -1, 1 << 64):
        with pytest.raises(ValueError):
            table.claim(key)
    assert table.claim((1 << 64) - 1) and not table.claim((1 << 64) - 1)


def check_a_full_table_says_so_and_answers_for_its_keys(table: Any) -> None:
    keys = [int(k) for k in np.random.default_rng(1).integers(1, 1 << 63, CAPACITY)]
    assert all(table.claim(key) for key in keys)
    with pytest.raises(HistoryFull, match="history_capacity"):
        table.claim(max(keys) + 1)
    assert not any(table.claim(key) for key in keys)
    table.release(keys[7])
    assert table.claim(keys[7])


Check = Callable[[Any], None]


def _named(names: list[str]) -> dict[str, Check]:
    return {name.removeprefix("check_"): globals()[name] for name in names}


_ALL = [name for name in globals() if name.startswith("check_")]
_HOST = ["check_an_abandoned_slot_is_shown_as_such", "check_a_slot_is_settled_once"]
_CLAIMS = _ALL[_ALL.index("check_one_claim_wins") :]

HISTORY_CHECKS = _named([name for name in _ALL if name not in _CLAIMS and name not in _HOST])
HOST_CHECKS = _named(_HOST)
CLAIM_CHECKS = _named(_CLAIMS)
