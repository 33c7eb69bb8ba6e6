# SPDX-License-Identifier: Apache-2.0
"""Candidates: what they derive, how they end, and their way into a record and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiperf_mpi.network.architecture import Architecture, Base, Morph
from aiperf_mpi.network.morphism import random_chain
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate, candidate_key
from aiperf_mpi.trials.record import RECORD_DTYPE, RecordError
from tests.helpers.trials.candidates import OWN, SMALL, child


def test_a_candidate_comes_back_from_its_record() -> None:
    candidate = child()
    back = Candidate.from_record(candidate.to_record(1.0), Architecture(SMALL), 5)
    assert back == dataclasses.replace(candidate, trial_id=5)
    assert back.architecture.layers() == candidate.architecture.layers()
    for name in ("trial_id", "parent_id", "round", "key", "seed", "train_ops", "kernel_size", "batch_global"):
        assert type(getattr(back, name)) is int, name


def test_derived_fields_of_a_new_candidate() -> None:
    candidate = child()
    assert candidate.trial_id == -1
    assert candidate.batch_global == 32 * 4
    assert (candidate.train_ops, candidate.val_ops) == operations(candidate.architecture)
    assert candidate.key == candidate_key(candidate.architecture.hash, 128) != 0
    # One network and one global batch: one claim and one initialisation, whichever replica proposes it.
    # Another batch gives another key.
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
def test_a_flag_shows_that_the_network_has_the_kernel(own: tuple[Morph, ...], takes: bool) -> None:
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


def test_an_outcome_needs_an_end_and_an_id() -> None:
    with pytest.raises(ValueError, match="status 0"):
        dataclasses.replace(child(), trial_id=4).outcome(rec.NONE, 0.0)
    with pytest.raises(ValueError, match="never written"):
        child().outcome(rec.DONE, 0.0)


# -- replay ----------------------------------------------------------------------------------------


def lineages(count: int) -> Iterator[tuple[Architecture, list[Candidate]]]:
    """Yield random lineages of 1 to 4 generations, each with 1 to 8 own morphs."""
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
