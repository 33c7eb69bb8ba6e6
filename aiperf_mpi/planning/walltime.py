# SPDX-License-Identifier: Apache-2.0
"""How much time the batch system leaves to this job, and whether the run fits into it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from aiperf_mpi.config import ConfigError

#: Seconds kept between the core phase's end and the job's: validating the best model again, writing the
#: result.
DEFAULT_RESERVE = 120.0


def remaining(environ: Mapping[str, str] = os.environ, now: float | None = None) -> float | None:
    """Seconds until the batch system ends this job; None where the environment does not tell.

    Slurm gives the end in SLURM_JOB_END_TIME. PBS does not, so that `jobscripts/aiperf_mpi.pbs` sets
    AIPERF_MPI_JOB_END, as any site can; it wins. Both are seconds since 1970.

    Raises ConfigError where such a variable is no number.
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
        raise ConfigError(f"environment variable {name}: {environ[name]!r} is no number of seconds") from None


def check_limit(
    time_limit: float,
    reserve: float = DEFAULT_RESERVE,
    environ: Mapping[str, str] = os.environ,
    now: float | None = None,
) -> str | None:
    """What is wrong if a core phase of `time_limit` seconds, with `reserve` seconds behind it, does not fit
    into the job's remaining time; None if it fits, or if the batch system does not say."""
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
        f"the "
        f"{left:.0f} s that this job has left; {advice}"
    )
