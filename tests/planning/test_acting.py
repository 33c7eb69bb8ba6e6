# SPDX-License-Identifier: Apache-2.0
"""From which trial and core time on the surrogate and HPO act, against numbers derived by hand."""

from __future__ import annotations

import pytest

from aiperf_mpi.config import load
from aiperf_mpi.planning.estimate.acting import acting_numbers, first_by_hpo, first_by_surrogate
from aiperf_mpi.planning.estimate.estimate import estimate
from aiperf_mpi.planning.estimate.machine import Machine


@pytest.mark.parametrize(
    ("count", "depth", "ahead", "surrogate", "hpo"),
    [
        # One replica, two candidates wait and one is prepared: when trial 3 ends, 4 begins, 5 is prepared, 6
        # waits, and 7 is chosen. When trial 4 ends, the first optimised one, 8 is chosen.
        (1, 2, "auto", 7, 8),
        # Without preparation one less. With one waiting: trials 4, 5 and 6 are the design, as only two are
        # chosen when trial 4 ends.
        (1, 2, "off", 6, 7),
        (1, 1, "off", 5, 7),
        # Of 16 replicas each has one trial ended, and a whole design in trial 4.
        (16, 2, "on", 5, 8),
    ],
)
def test_first_trials(count: int, depth: int, ahead: str, surrogate: int, hpo: int) -> None:
    sets = (f"search.queue_depth={depth}", f"parallel.compile_ahead='{ahead}'")
    config = load("imagenet", sets=sets)
    assert (first_by_surrogate(config, count), first_by_hpo(config, count)) == (surrogate, hpo)


def test_methods_that_do_not_learn_never_act() -> None:
    for sets in ("search.method='evolution'", "hpo.method='grid'", "hpo.enabled=false"):
        assert list(acting_numbers(load("imagenet", sets=(sets,)), Machine(1, 8, 3), 1.0, (0.8, 1.0))) == []


def test_the_core_time_follows_from_the_rounds() -> None:
    # Eight trials have 15 + 30 + 45 + 5 x 60 = 390 epochs, at least 7 + 9 + ... + 21 = 112 by patience; of a
    # second each, in 80 to 100 % of the core time.
    first, seconds = acting_numbers(load("imagenet"), Machine(1, 8, 3, 1e12), 1.0, (0.8, 1.0))
    assert first.value == 8 and seconds.value == pytest.approx((112.0, 487.5))
    assert "surrogate from trial 7 on" in first.assumption
    assert "hyperparameters from trial 8 on" in first.assumption
    # Without a rate only the trial is known.
    names = [
        number.name for number in estimate(load("imagenet"), Machine(1, 8, 3)) if number.group == "search"
    ]
    assert names == ["first trial of a replica that both choose"]
