# SPDX-License-Identifier: Apache-2.0
"""The timer of phases: no moment counts twice, and time outside of all phases does not count."""

from __future__ import annotations

import time

import pytest

from aiperf_mpi.phases import PHASES, PhaseTimer
from aiperf_mpi.results.file import schema


class Clock:
    """A clock that advances only when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> PhaseTimer:
    return PhaseTimer(clock)


def test_the_nine_phases_have_one_source() -> None:
    assert PHASES == ("init", "data", "search", "compile", "train", "validate", "communicate", "io", "idle")
    assert schema.PHASES is PHASES


def test_a_nested_phase_pauses_the_outer_one(timer: PhaseTimer, clock: Clock) -> None:
    with timer("train"):
        clock.now += 1
        with timer("communicate"):
            clock.now += 2
            with timer("io"):
                clock.now += 4
            clock.now += 8
        clock.now += 16
    assert timer.seconds == {**dict.fromkeys(PHASES, 0.0), "train": 17, "communicate": 10, "io": 4}


def test_time_outside_of_every_phase_is_missing(timer: PhaseTimer, clock: Clock) -> None:
    clock.now += 5
    with timer("idle"):
        clock.now += 1
    clock.now += 5
    assert sum(timer.seconds.values()) == timer.seconds["idle"] == 1
    assert timer.phase is None


def test_the_present_phase_counts_up_to_now(timer: PhaseTimer, clock: Clock) -> None:
    with timer("search"):
        clock.now += 3
        assert timer.seconds["search"] == 3 and timer.phase == "search"
        clock.now += 1
        assert timer.seconds["search"] == 4
    assert timer.seconds["search"] == 4


def test_an_exception_ends_its_phase(timer: PhaseTimer, clock: Clock) -> None:
    with timer("train"):
        with pytest.raises(KeyError), timer("validate"):
            clock.now += 2
            raise KeyError
        clock.now += 1
    assert (timer.seconds["validate"], timer.seconds["train"], timer.phase) == (2, 1, None)


def test_switch_leaves_one_phase_for_another(timer: PhaseTimer, clock: Clock) -> None:
    assert timer.switch("init") is None
    clock.now += 1
    assert timer.switch("idle") == "init"
    clock.now += 2
    assert timer.switch(None) == "idle"
    clock.now += 4
    assert (timer.seconds["init"], timer.seconds["idle"]) == (1, 2)


def test_an_unknown_phase_is_refused(timer: PhaseTimer) -> None:
    with pytest.raises(ValueError, match="'eval' is not one of init, data"):
        timer.switch("eval")
    with pytest.raises(ValueError, match="'eval'"), timer("eval"):
        pass


def test_real_time_adds_up() -> None:
    start = time.monotonic()
    timer = PhaseTimer()
    timer.switch("idle")
    for _ in range(200):
        with timer("train"), timer("io"):
            time.sleep(0.0005)
    timer.switch(None)
    wall = time.monotonic() - start
    assert sum(timer.seconds.values()) == pytest.approx(wall, abs=0.002)
    assert timer.seconds["io"] >= 200 * 0.0005
