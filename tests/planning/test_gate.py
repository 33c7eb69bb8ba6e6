# SPDX-License-Identifier: Apache-2.0
"""The time to the 30 % gate: what follows from the public learning curves for this schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aiperf_mpi.config import load
from aiperf_mpi.planning.estimate import gate
from aiperf_mpi.planning.estimate.estimate import estimate
from aiperf_mpi.planning.estimate.machine import Machine
from aiperf_mpi.planning.estimate.number import Number

CONFIG = load("imagenet")


def numbers(machine: Machine, *sets: str) -> dict[str, Number]:
    """Return the numbers of the group by name."""
    return {n.name: n for n in estimate(load("imagenet", sets=sets), machine) if n.group == "gate"}


def test_the_published_points_are_those_of_their_sources() -> None:
    # GluonCV: 120 epochs, 5 of warm-up, lr 0.4 at batch 1024; the epoch with index 89 is the first at 70 %.
    assert 0.4 * (1 + math.cos(math.pi * (89 - 5) / 115)) / 2 / 4 == pytest.approx(gate.EARLY_RATE, rel=0.01)
    # Goyal et al.: 30 epochs at the rate, 30 at a tenth, 20 at a hundredth, 10 at a thousandth.
    assert 30 + 3 + 0.2 + 0.01 == pytest.approx(33.21)
    assert (gate.LITTLE, gate.ENOUGH) == pytest.approx((0.10378, 0.58708), abs=1e-5)
    # 11.67 of the 15.45 points between them are 0.7553 of ln sqrt(32) = 1.7329: 0.10378 x exp(1.3089).
    assert pytest.approx(0.3842, abs=1e-4) == gate.NEEDED


def test_the_learning_of_a_schedule_falls_with_the_devices_of_a_replica() -> None:
    # 60 epochs of 0.1 (1 - e / 60) are 3.05; 256 of 448 images: 1.742857.
    assert gate.learning(CONFIG, 1, 60) == pytest.approx(3.05 * 256 / 448)
    assert gate.learning(CONFIG, 8, 60) == pytest.approx(3.05 * 256 / 448 / 8)
    # 1.742857 / 0.58708 = 2.97.
    assert gate.surest_devices(CONFIG) == 2


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        # 0.057143 (1 - e / 60) is 0.0169 at e = 42.3, so epoch 43 is the first below it, the 44th; a
        # twentieth is reached at e = 57, the 58th.
        (1, (44, 58)),
        # 0.028571 (1 - e / 60): e = 24.5.
        (2, (26, 58)),
        # The rate is low from the first epoch. 0.0142857 (n - n (n - 1) / 120) reaches 0.3842 with n = 40:
        # 0.0142857 x 27 = 0.3857, and with 39 0.3807. In all 0.4357 < 0.587.
        (4, (40, None)),
        # 0.2179 in all.
        (8, None),
    ],
)
def test_epochs_of_a_trial(devices: int, expected: object) -> None:
    assert gate.epochs_to_gate(CONFIG, devices) == expected


def test_rounds_before_the_first_that_is_long_enough_count_in_full() -> None:
    found = [gate.epochs_of_rounds(CONFIG, epochs) for epochs in (15, 26, 44, 45, 58, 61)]
    assert found == [15, 15 + 26, 15 + 30 + 44, 15 + 30 + 45, 15 + 30 + 45 + 58, None]


def test_core_time_and_node_hours_follow_from_the_rate() -> None:
    # An epoch of one device at 100 Top/s: 2859 steps of 448 = 1,280,832 images x 23,053,458,315 and 50,000 x
    # 7,806,583,495: 2.99179e16 op, 299.18 s. 89 epochs of it, and 148 in 80 % of the time.
    found = numbers(Machine(4, 1, 3, 100e12))
    core = found["core time to an error of 30 %"]
    assert core.value == pytest.approx((89 * 299.179, 148 * 299.179 / 0.8), rel=1e-4)
    assert "run.time_limit is 43200 s: it MAY BE TOO SHORT" in core.assumption
    hours: Any = found["node-hours to an error of 30 %"].value
    assert hours == pytest.approx([4 * (300 + seconds + 120) / 3600 for seconds in core.value])  # type: ignore[union-attr]
    assert found["learning of the whole schedule"].assumption.endswith(": enough")

    for seconds, words in ((26_000, "TOO SHORT: no trial"), (56_000, "s: enough. More")):
        found = numbers(Machine(4, 1, 3, 100e12), f"run.time_limit={seconds}")
        assert words in found["core time to an error of 30 %"].assumption


def test_a_replica_of_many_devices_is_warned_of() -> None:
    found = numbers(Machine(4, 8, 3, 100e12))
    assert "TOO LITTLE" in found["learning of the whole schedule"].assumption
    # An epoch of two devices takes four times that of eight, 37.359 s: 41 epochs, and 148 in 80 %.
    assert list(found) == ["learning of the whole schedule", "core time with replicas of 2 devices"]
    assert found["core time with replicas of 2 devices"].value == pytest.approx(
        (41 * 4 * 37.359, 148 * 4 * 37.359 / 0.8), rel=1e-3
    )
    found = numbers(Machine(4, 4, 3, 100e12))
    assert "NOT SURE" in found["learning of the whole schedule"].assumption
    assert found["epochs of a trial to an error of 30 %"].value == (40, 60)
    # A higher rate is enough: 0.4 x 30.5 x 256 / 3584 = 0.871.
    found = numbers(Machine(4, 8, 3, 100e12), "train.lr=0.4")
    assert found["learning of the whole schedule"].value == pytest.approx(0.8714, abs=1e-4)


def test_nothing_is_said_where_the_sources_say_nothing() -> None:
    assert not numbers(Machine(4, 1), "result.max_error=0.2") and not numbers(Machine(4, 1), "model.width=32")
    assert not [n for n in estimate(load("cifar10"), Machine(2, 1)) if n.group in ("gate", "data")]
    # Without a rate there are epochs, but no time.
    assert [name.split()[0] for name in numbers(Machine(4, 1))] == ["learning", "epochs", "epochs"]
