# SPDX-License-Identifier: Apache-2.0
"""Records: width, checksum, what a summary keeps, replay from the parent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiperf_mpi.network.architecture import Architecture, Base, Morph
from aiperf_mpi.network.morphism import random_chain
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.record import RECORD_DTYPE, SUMMARY_DTYPE, Candidate, RecordError

SMALL = Base(image_size=32, channels=1, classes=10, width=4)
OWN = (Morph("deeper", 5, 0, 3), Morph("skip", 1, 9), Morph("wider", 8))


def child(parent: Architecture | None = None, own: tuple[Morph, ...] = OWN, **changes: int) -> Candidate:
    fields = {
        "parent_id": 0,
        "replica": 3,
        "generator": 1,
        "round": 2,
        "batch_per_device": 32,
        "devices": 4,
        "seed": 7,
    }
    return Candidate.new((parent or Architecture(SMALL)).apply(*own), own, **(fields | changes))


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


def test_an_empty_slot_is_no_record() -> None:
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
def test_a_sealed_record_must_also_make_sense(change: tuple[str, int]) -> None:
    record = child().to_record(0.0)
    record[change[0]] = change[1]
    assert not rec.check(rec.seal(record))


def test_seal_leaves_the_original_alone() -> None:
    record = rec.new_record()
    before = record.tobytes()
    assert rec.seal(record).tobytes()[:-4] == before[:-4]
    assert record.tobytes() == before


# -- candidates ------------------------------------------------------------------------------------


def test_a_candidate_comes_back_from_its_record() -> None:
    candidate = child()
    back = Candidate.from_record(candidate.to_record(1.0), Architecture(SMALL), 5)
    assert back == dataclasses.replace(candidate, trial_id=5)
    assert back.architecture.layers() == candidate.architecture.layers()
    for name in ("trial_id", "parent_id", "round", "key", "seed", "train_ops", "kernel_size", "batch_global"):
        assert type(getattr(back, name)) is int, name


def test_what_a_new_candidate_derives() -> None:
    candidate = child()
    assert candidate.trial_id == -1
    assert candidate.batch_global == 32 * 4
    assert (candidate.train_ops, candidate.val_ops) == operations(candidate.architecture)
    assert candidate.key == rec.candidate_key(candidate.architecture.hash, 128) != 0
    # One network, one global batch: one claim and one initialisation, whoever proposes it; another batch:
    # another.
    twin = child(replica=9, generator=0, round=4, batch_per_device=64, devices=2)
    assert (twin.key, twin.seed) == (candidate.key, candidate.seed)
    assert child(devices=2).key != candidate.key
    assert child(seed=8).seed != candidate.seed


def test_group_joins_what_differs_in_the_kernel_only() -> None:
    plain = child()
    tuned_architecture = plain.architecture.with_own_kernel(3, 7)
    own = tuned_architecture.morphs
    tuned = Candidate.new(
        tuned_architecture,
        own,
        parent_id=0,
        replica=0,
        generator=0,
        round=4,
        batch_per_device=32,
        devices=4,
        seed=7,
        kernel_size=7,
    )
    assert tuned.group == plain.group == plain.architecture.hash != tuned_architecture.hash
    assert tuned.train_ops > plain.train_ops
    assert tuned.to_record(0.0)["group"].tobytes() == plain.to_record(0.0)["group"].tobytes()


def test_the_wrong_parent_is_noticed() -> None:
    record = child().to_record(0.0)
    other = Architecture(SMALL).apply(Morph("kernel", 1, 0, 3))
    with pytest.raises(RecordError, match="right parent"):
        Candidate.from_record(record, other, 1)


def test_a_torn_or_forged_record_is_refused() -> None:
    record = child().to_record(0.0)
    record["train_ops"] += np.uint64(1)
    with pytest.raises(RecordError, match="torn"):
        Candidate.from_record(record, Architecture(SMALL), 1)
    record = child().to_record(0.0)
    record["batch_global"] *= 2
    with pytest.raises(RecordError, match="key"):
        Candidate.from_record(rec.seal(record), Architecture(SMALL), 1)


def test_nine_morphs_do_not_fit() -> None:
    own = tuple(Morph("deeper", 5, 0, 3) for _ in range(9))
    with pytest.raises(ValueError, match="9 morphs"):
        child(own=own).to_record(0.0)


def test_own_morphs_must_be_the_last_ones() -> None:
    with pytest.raises(ValueError, match="not the last ones"):
        Candidate.new(
            Architecture(SMALL, OWN),
            OWN[:1],
            parent_id=0,
            replica=0,
            generator=0,
            round=1,
            batch_per_device=1,
            devices=1,
            seed=0,
        )


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


@pytest.mark.parametrize(
    ("own", "takes"),
    [
        ((Morph("deeper", 2, 0, 3),), True),
        ((Morph("wider", 2), Morph("kernel", 1, 0, 3), Morph("skip", 1, 3)), False),
        (
            (Morph("deeper", 2, 0, 3), Morph("kernel", 7, 0, 5)),
            False,
        ),  # a kernel morph of the same chain wins
        ((Morph("deeper", 2, 0, 3), Morph("kernel", 7, 0, 5), Morph("deeper", 7, 0, 3)), True),
    ],
)
def test_a_record_says_whether_the_kernel_size_is_in_the_network(own: tuple[Morph, ...], takes: bool) -> None:
    # Seven units, so the first `deeper` makes unit 7.
    initial = Architecture(Base(image_size=16, channels=1, classes=4, width=2, blocks=(1, 1)))
    candidate = Candidate.new(
        initial.apply(*own),
        own,
        parent_id=0,
        replica=0,
        generator=0,
        round=4,
        batch_per_device=32,
        devices=1,
        seed=0,
    )
    summary = rec.summarise(candidate.to_record(0.0))
    assert summary["flags"] == (rec.TAKES_KERNEL if takes else 0) and summary["kernel_size"] == 3


def test_a_withdrawal_names_its_trial_and_is_no_outcome() -> None:
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


def test_a_rejection_keeps_what_was_wrong() -> None:
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


def test_an_outcome_needs_an_end_and_an_id() -> None:
    with pytest.raises(ValueError, match="status 0"):
        dataclasses.replace(child(), trial_id=4).outcome(rec.NONE, 0.0)
    with pytest.raises(ValueError, match="never written"):
        child().outcome(rec.DONE, 0.0)


# -- replay ----------------------------------------------------------------------------------------


def lineages(count: int) -> Iterator[tuple[Architecture, list[Candidate]]]:
    """Random lineages of 1 to 4 generations, each with 1 to 8 own morphs."""
    rng = np.random.default_rng(2021)
    for _ in range(count):
        architecture, line = Architecture(SMALL), []
        for _generation in range(int(rng.integers(1, 5))):
            architecture, own = random_chain(architecture, rng, int(rng.integers(1, 9)))
            line.append(
                Candidate.new(
                    architecture,
                    own,
                    parent_id=0,
                    replica=0,
                    generator=0,
                    round=1,
                    batch_per_device=32,
                    devices=1,
                    seed=0,
                )
            )
        yield Architecture(SMALL), line


def replay(count: int) -> None:
    for initial, line in lineages(count):
        parent = initial
        for candidate in line:
            back = Candidate.from_record(candidate.to_record(0.0), parent, -1)
            assert back == candidate
            assert back.architecture.hash == candidate.architecture.hash
            assert back.architecture.layers() == candidate.architecture.layers()
            parent = back.architecture


def test_500_lineages_replay_identically() -> None:
    replay(500)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_10000_lineages_replay_identically() -> None:
    replay(10_000)


@given(st.binary(min_size=256, max_size=256))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_never_a_candidate(data: bytes) -> None:
    record = np.frombuffer(data, RECORD_DTYPE)[0]
    with pytest.raises(ValueError):
        Candidate.from_record(record, Architecture(SMALL), 0)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_random_morphs_under_a_good_checksum_are_a_value_error(words: list[int]) -> None:
    record = child().to_record(0.0)
    record["n_morphs"] = len(words)
    record["morphs"][: len(words)] = words
    with pytest.raises(ValueError):
        Candidate.from_record(rec.seal(record), Architecture(SMALL), 0)
