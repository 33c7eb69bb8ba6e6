# SPDX-License-Identifier: Apache-2.0
"""Records: width, checksum, what a summary keeps, rejections and withdrawals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture, Morph
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.record import RECORD_DTYPE, SUMMARY_DTYPE
from tests.helpers.trials.candidates import SMALL, child

# -- layout ----------------------------------------------------------------------------------------


def test_widths_are_fixed_and_fields_aligned() -> None:
    assert RECORD_DTYPE.itemsize == 256 <= 512
    assert SUMMARY_DTYPE.itemsize == 32
    for dtype in (RECORD_DTYPE, SUMMARY_DTYPE):
        assert dtype.names is not None and dtype.fields is not None
        for name in dtype.names:
            kind, offset = dtype.fields[name][:2]
            size = kind.base.itemsize if kind.base.kind in "iuf" else 1
            assert offset % size == 0, name
            assert kind.base.byteorder != ">", name
        if dtype is RECORD_DTYPE:
            assert dtype.names[-1] == "crc32"
            assert dtype.fields["crc32"][1] == dtype.itemsize - 4


def test_an_empty_slot_is_not_a_record() -> None:
    assert not rec.check(np.zeros(1, RECORD_DTYPE)[0])


def test_any_flipped_bit_is_found() -> None:
    record = child().to_record(12.5)
    assert rec.check(record)
    data = record.tobytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not rec.check(np.frombuffer(bytes(flipped), RECORD_DTYPE)[0]), f"bit {bit}"


@pytest.mark.parametrize("change", [("kind", 0), ("kind", 3), ("status", 1), ("format", 2), ("n_morphs", 9)])
def test_a_sealed_record_with_impossible_fields_is_refused(change: tuple[str, int]) -> None:
    record = child().to_record(0.0)
    record[change[0]] = change[1]
    assert not rec.check(rec.seal(record))


def test_seal_leaves_the_original_alone() -> None:
    record = rec.new_record()
    before = record.tobytes()
    assert rec.seal(record).tobytes()[:-4] == before[:-4]
    assert record.tobytes() == before


# -- outcomes and summaries ------------------------------------------------------------------------


def test_summary_of_a_proposal() -> None:
    summary = rec.summarise(child().to_record(0.0))
    assert (summary["kind"], summary["status"], summary["n_morphs"], summary["round"]) == (
        rec.PROPOSED,
        rec.NONE,
        3,
        2,
    )
    assert (summary["trial"], summary["parent"]) == (-1, 0)
    assert (summary["batch_per_device"], summary["kernel_size"]) == (32, 3)
    assert math.isnan(summary["value"])


@pytest.mark.parametrize(
    ("status", "best", "predicted", "value", "flags"),
    [
        (rec.DONE, 0.25, math.nan, 0.25, 0),
        (rec.STOPPED, 0.5, math.nan, 0.5, 0),
        (
            rec.DONE,
            0.5,
            0.25,
            0.25,
            rec.PREDICTED,
        ),  # the warm-up: the search sees the prediction, and that it is one
        (rec.FAILED, 0.25, math.nan, math.nan, 0),  # a failed trial is worth nothing, whatever it reached
        (rec.REJECTED, math.nan, math.nan, math.nan, 0),
        (rec.DROPPED, math.nan, math.nan, math.nan, 0),
        (rec.DONE, math.nan, math.nan, math.nan, 0),
    ],
)
def test_value_that_the_search_uses(
    status: int, best: float, predicted: float, value: float, flags: int
) -> None:
    candidate = dataclasses.replace(child(), trial_id=4)
    record = candidate.outcome(status, 9.0, epochs=3, best_error=best, predicted_error=predicted)
    assert rec.check(record)
    summary = rec.summarise(record)
    assert (summary["kind"], summary["status"], summary["trial"]) == (rec.OUTCOME, status, 4)
    np.testing.assert_equal(float(summary["value"]), value)
    assert summary["flags"] == flags | rec.TAKES_KERNEL
    assert (record["t"], record["epochs"]) == (9.0, 3)


def test_flags_of_inherited_and_kept_weights() -> None:
    candidate = dataclasses.replace(child(own=(Morph("wider", 2),)), trial_id=4, from_checkpoint=True)
    proposed = candidate.to_record(0.0)
    assert proposed["flags"] == rec.summarise(proposed)["flags"] == rec.FROM_CHECKPOINT
    assert Candidate.from_record(proposed, Architecture(SMALL), 4) == candidate
    assert child(from_checkpoint=True).from_checkpoint and not child().from_checkpoint

    kept = candidate.outcome(rec.DONE, 1.0, best_error=0.5, predicted_error=0.25, kept=True)
    assert kept["flags"] == rec.FROM_CHECKPOINT | rec.KEPT | rec.PREDICTED
    assert candidate.outcome(rec.DONE, 1.0, best_error=0.5)["flags"] == rec.FROM_CHECKPOINT
    assert rec.rejection(proposed, 4, 1.0, "gone")["flags"] == rec.FROM_CHECKPOINT


def test_a_withdrawal_names_its_trial_without_an_outcome() -> None:
    record = rec.withdrawal(4, 2, 9.0)
    assert rec.check(record)
    assert (record["kind"], record["trial"], record["replica"], record["t"]) == (rec.WITHDRAWN, 4, 2, 9.0)
    summary = rec.summarise(record)
    assert (summary["kind"], summary["trial"], summary["status"]) == (rec.WITHDRAWN, 4, rec.NONE)
    assert math.isnan(summary["value"])
    record["status"] = rec.DONE
    assert not rec.check(rec.seal(record))


def test_a_cause_is_cut_to_its_field() -> None:
    candidate = dataclasses.replace(child(), trial_id=4)
    record = candidate.outcome(rec.FAILED, 1.0, cause="Verlust \u00e4ndert sich nicht: " + "x" * 100)
    assert record["cause"].startswith(b"Verlust ?ndert sich")
    assert len(record["cause"]) == 64


def test_a_rejection_keeps_the_rejected_fields() -> None:
    proposed = child().to_record(0.0)
    proposed["train_ops"] = 7  # a tampered count, under a good checksum
    record = rec.rejection(rec.seal(proposed), 4, 9.0, "analytical 8 against 7 executed")
    assert rec.check(record)
    assert (record["kind"], record["status"], record["trial"], record["t"]) == (
        rec.OUTCOME,
        rec.REJECTED,
        4,
        9.0,
    )
    assert (record["train_ops"], record["cause"]) == (7, b"analytical 8 against 7 executed")
    assert np.isnan(rec.summarise(record)["value"])
