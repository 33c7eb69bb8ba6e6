# SPDX-License-Identifier: Apache-2.0
"""A step that never ends fails its training, and its process goes on."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import pytest

from aiperf_mpi.training.waiting import StepTimes, Waiter, is_ready, preparation_seconds


def test_a_step_is_stuck_after_twenty_medians_and_five_minutes_at_least() -> None:
    times = StepTimes()
    # Nothing is known of the first step, which may tune kernels: half an hour, as a compilation.
    assert times.patience() == preparation_seconds(0.0) == 1800 and times.last_patience() == math.inf
    for seconds in (1.0, 2.0, 90.0):
        times.add(seconds)
    assert times.patience() == 300 and times.last_patience() == 40
    for _ in range(4):
        times.add(20.0)
    assert times.patience() == 400 and times.last_patience() == 400
    for _ in range(101):
        times.add(0.1)
    assert times.patience() == 300 and times.last_patience() == 30


def test_a_setting_takes_the_place_of_the_median() -> None:
    times = StepTimes(5.0)
    # A compilation has six times as long.
    assert times.patience() == preparation_seconds(5.0) == 30
    times.add(1.0)
    assert times.patience() == 5


def test_a_waiter_waits_for_what_is_computed_and_ends() -> None:
    waiter, before = Waiter(), threading.active_count()
    assert waiter.ready(0.0)
    for _ in range(3):
        array = jnp.ones((64, 64)) @ jnp.ones((64, 64))
        waiter.begin(array)
        assert waiter.ready(10.0) and is_ready(array)
    waiter.close()
    waiter.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("how", "least"), [("hangs", 1.0), pytest.param("stops", 0.5, marks=pytest.mark.full)]
)
def test_a_step_that_never_ends_fails_its_training(how: str, least: float, root: Path) -> None:
    # Step 6 of 10 makes parameters that never come, so that step 7 never ends. A run that stops waits less.
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs.training.hanging", how],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert ended["error"].startswith("stuck: epoch 0, training: step 7 has not ended for "), ended
    assert ended["rows"] == [[7, True]] and ended["end"] == ""
    assert least <= ended["seconds"] < 30
    # It has served MPI all the time.
    assert ended["gap"] < 0.5
