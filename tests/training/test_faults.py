# SPDX-License-Identifier: Apache-2.0
"""Which faults the configuration injects, and where; the trainings of other tests show what they cause."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import pytest

from aiperf_mpi.config.fault import Fault
from aiperf_mpi.network.architecture import resnet50
from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.training.faults import Tampering, TrainingFault, sleep_untimed, training_fault
from aiperf_mpi.trials.candidate import Candidate
from tests.helpers.training.cases import TINY


@pytest.fixture
def candidate() -> Candidate:
    """Round 3 of replica 1."""
    return Candidate.new(
        resnet50(TINY),
        (),
        parent_id=-1,
        replica=1,
        generator=0,
        round=3,
        batch_per_device=4,
        devices=1,
        seed=0,
    )


def test_a_fault_hits_its_round_and_replica_alone(candidate: Candidate) -> None:
    fault = Fault(raise_in_round=3, raise_replica=1, nan_in_round=3, disturb_in_round=3, disturb_replica=1)
    assert training_fault(fault, candidate, 0) == TrainingFault(raise_at=(0, 1), disturb_at=(0, 1))
    assert training_fault(fault, replace(candidate, replica=0), 0) == TrainingFault(nan_at=(0, 1))
    assert training_fault(fault, replace(candidate, round=2), 0) == TrainingFault()
    assert training_fault(Fault(), candidate, 0) == TrainingFault()
    hangs = Fault(hang_in_round=3, hang_replica=1)
    assert training_fault(hangs, candidate, 0) == TrainingFault(hang_at=(0, 1))


def test_one_trainer_of_a_replica_raises(candidate: Candidate) -> None:
    fault = Fault(raise_in_round=3, raise_replica=1, raise_trainer=1)
    raises = [training_fault(fault, candidate, trainer).raise_at for trainer in (0, 1, 2)]
    assert raises == [None, (0, 1), None]


def test_one_record_of_the_named_round_is_changed(candidate: Candidate) -> None:
    tampering = Tampering(Fault(tamper_in_round=3, tamper_replica=1))
    other = replace(candidate, round=2)
    assert tampering.apply(other) is other
    assert tampering.apply(candidate).train_ops == candidate.train_ops + 1
    assert tampering.apply(candidate) is candidate


@pytest.mark.parametrize(("rank", "missing"), [(1, 0.2), (0, 0.0)])
def test_an_untimed_sleep_is_missing_from_the_phases(rank: int, missing: float) -> None:
    timer, begin = PhaseTimer(), time.monotonic()
    timer.switch("idle")
    sleep_untimed(Fault(untimed_sleep_seconds=0.2, untimed_sleep_rank=1), rank, timer)
    assert timer.phase == "idle"
    assert time.monotonic() - begin - sum(timer.seconds.values()) == pytest.approx(missing, abs=0.1)


def test_faults_are_imported_without_jax() -> None:
    code = "import sys, aiperf_mpi.training.faults; raise SystemExit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
