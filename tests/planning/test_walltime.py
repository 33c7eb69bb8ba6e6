# SPDX-License-Identifier: Apache-2.0
"""The job's remaining time, and whether a run fits into it."""

from __future__ import annotations

import time

import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.planning.walltime import check_limit, remaining


def test_without_a_batch_system_there_is_no_limit() -> None:
    assert remaining({}) is None
    assert check_limit(1e9, environ={}) is None
    assert remaining({"SLURM_JOB_END_TIME": ""}) is None


def test_the_jobs_end_is_read_from_the_environment() -> None:
    assert remaining({"SLURM_JOB_END_TIME": "5000"}, now=1000) == 4000
    assert remaining({"SLURM_JOB_END_TIME": "5000", "AIPERF_MPI_JOB_END": "3000"}, now=1000) == 2000
    assert remaining({"AIPERF_MPI_JOB_END": str(time.time() + 60)}) == pytest.approx(60, abs=1)


def test_a_run_that_does_not_fit_is_refused_with_advice() -> None:
    environ = {"SLURM_JOB_END_TIME": "5000"}

    # 4000 s are left: 3880 s and a reserve of 120 s fit exactly.
    assert check_limit(3880, 120, environ, now=1000) is None
    text = check_limit(3881, 120, environ, now=1000)
    assert (
        text is not None and "3881 s and 120 s" in text and "4000 s" in text and "--time-limit 3880" in text
    )
    late = check_limit(10, 120, environ, now=4900)
    assert late is not None and "ask for a longer job" in late and "pass --time-limit" not in late


def test_a_broken_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME: 'soon'"):
        remaining({"SLURM_JOB_END_TIME": "soon"})
