# SPDX-License-Identifier: Apache-2.0
"""Read the time that the batch system leaves to this job, and check that the run fits into it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from aiperf_mpi.config import ConfigError

#: Seconds from the end of the core phase to the end of the job: to validate the best model again and write
#: the result.
DEFAULT_RESERVE = 120.0


def remaining(environ: Mapping[str, str] = os.environ, now: float | None = None) -> float | None:
    """Return the seconds until the batch system ends this job; None if the environment does not contain them.

    Slurm gives the end in SLURM_JOB_END_TIME. PBS does not, so `jobscripts/aiperf_mpi.pbs` sets
    AIPERF_MPI_JOB_END, as any site can; this variable has priority. Both are seconds since 1970.

    Raises ConfigError if the variable is not a number.
    """
    now = time.time() if now is None else now
    for name in ("AIPERF_MPI_JOB_END", "SLURM_JOB_END_TIME"):
        if environ.get(name):
            break
    else:
        return None
    try:
        return float(environ[name]) - now
    except ValueError:
        raise ConfigError(
            f"environment variable {name}: {environ[name]!r} is not a number of seconds"
        ) from None


def check_limit(
    time_limit: float,
    reserve: float = DEFAULT_RESERVE,
    environ: Mapping[str, str] = os.environ,
    now: float | None = None,
) -> str | None:
    """Return a message if `time_limit` and `reserve` seconds do not fit into the job's remaining time.

    `time_limit` is the length of the core phase, `reserve` the time after it. None if they fit, or if the
    remaining time is not known.
    """
    left = remaining(environ, now)
    if left is None or time_limit + reserve <= left:
        return None
    fitting = int(left - reserve)
    advice = (
        f"pass --time-limit {fitting} at most, or ask for a longer job"
        if fitting >= 1
        else "ask for a longer job"
    )
    return (
        f"--time-limit {time_limit:g} s and {reserve:g} s to validate and write the result do not fit into "
        f"the {left:.0f} s that this job has left; {advice}"
    )
