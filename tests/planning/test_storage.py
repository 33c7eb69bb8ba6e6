# SPDX-License-Identifier: Apache-2.0
"""The output folder: what is accepted, what is refused before anything runs, and what a refusal leaves."""

from __future__ import annotations

import shutil

from aiperf_mpi.config import load
from aiperf_mpi.network.architecture import resnet50
from aiperf_mpi.planning.storage import default_output, estimate_bytes

DEMO = load("demo")


def test_the_estimate_counts_every_replicas_weights() -> None:
    """Another replica adds its weights, kept and in replacement (float32 alone: 4 bytes a parameter), and
    rows."""
    parameters = resnet50(DEMO.base).parameters
    one, two, three = (estimate_bytes(DEMO, replicas) for replicas in (1, 2, 3))
    assert two - one == three - two >= 2 * 4 * parameters
    assert estimate_bytes(load("demo", sets=["result.keep_checkpoints=5"]), 1) - one >= 4 * 4 * parameters
    assert estimate_bytes(load("demo", time_limit=11000.0), 1) > one

    # The demo has to fit where a person tries it first: a laptop's disk.
    assert one < 2**28 < shutil.disk_usage("/").total


def test_the_estimate_counts_the_states_of_trials_that_train() -> None:
    """Two states of each replica and one in replacement, each of 4 bytes for a parameter, its momentum and
    its best value; none in a run that is shorter than the time between two, or where there are none."""
    long = DEMO.run.time_limit + 1
    parameters, none, often = resnet50(DEMO.base).parameters, f"{long}", f"{DEMO.run.time_limit}"
    without, zero, each = (
        estimate_bytes(load("demo", sets=[f"result.checkpoint_seconds={seconds}"]), 2)
        for seconds in (none, "0", often)
    )
    assert without == zero and each - without >= 2 * 3 * 12 * parameters


def test_the_default_name_is_the_time() -> None:
    assert default_output(0.0).startswith("runs/aiperf_mpi-19") and default_output() != default_output(0.0)
