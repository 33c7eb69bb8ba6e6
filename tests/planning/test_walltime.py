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
    late = check_limit(10, 120, environ, now=4950)
    assert late is not None and "ask for a longer job" in late and "pass --time-limit" not in late


def test_a_broken_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME: 'soon'"):
        remaining({"SLURM_JOB_END_TIME": "soon"})


@pytest.mark.parametrize("text", ["soon", "nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("name", ["SLURM_JOB_END_TIME", "AIPERF_MPI_JOB_END"])
def test_a_value_that_is_no_time_is_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: '{text}' is not a number.*unset {name}"):
        remaining({name: text})


def test_an_end_that_is_over_names_its_variable() -> None:
    environ = {"SLURM_JOB_END_TIME": "5000"}
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME: 5000 is 60 s ago.*unset SLURM_JOB_END_TIME"):
        remaining(environ, now=5060)
    # The batch system knows better.
    assert remaining(environ, now=5060, told=5160) == 100
    assert remaining(environ, now=4000, told=9999) == 1000


def test_the_batch_systems_answer_counts_without_a_variable() -> None:
    assert remaining({}, now=1000, told=1600) == 600
    text = check_limit(600, 120, {}, now=1000, told=1600)
    assert text is not None and "--time-limit 480" in text
