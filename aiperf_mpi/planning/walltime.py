# SPDX-License-Identifier: Apache-2.0
"""Read the time that the batch system leaves to this job, and check that the run fits into it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping

from aiperf_mpi.config import ConfigError

#: Seconds from the end of the core phase to the end of the job: to validate the best model again and write
#: the result.
DEFAULT_RESERVE = 120.0


#: The variables with the end of the job in seconds since 1970; the first that is set counts.
VARIABLES = ("AIPERF_MPI_JOB_END", "SLURM_JOB_END_TIME")


def remaining(
    environ: Mapping[str, str] = os.environ, now: float | None = None, told: float | None = None
) -> float | None:
    """Return the seconds until the batch system ends this job; None if nothing tells them.

    Slurm gives the end in SLURM_JOB_END_TIME (from 22.05 on not everywhere). PBS does not, so
    `jobscripts/aiperf_mpi.pbs` sets AIPERF_MPI_JOB_END, as any site can; this variable has priority. Both are
    seconds since 1970, as is `told`, the batch system's own answer, which counts where no variable is set.

    Raises ConfigError if the variable is not a number, or if the end that it tells is over.
    """
    now = time.time() if now is None else now
    name = next((name for name in VARIABLES if environ.get(name)), None)
    if name is None:
        return None if told is None else told - now
    try:
        end = float(environ[name])
    except ValueError:
        end = math.nan
    if not math.isfinite(end):
        raise ConfigError(
            f"environment variable {name}: {environ[name][:80]!r} is not a number of seconds since 1970; "
            f"unset {name}, or set it to the job's end (date +%s)"
        )
    if end <= now and told is not None and told > now:
        return told - now
    if end <= now:
        raise ConfigError(
            f"environment variable {name}: {environ[name]} is {now - end:.0f} s ago, but this job runs: it "
            f"may be left from another job; unset {name}, or ask for a longer job"
        )
    return end - now


def check_limit(
    time_limit: float,
    reserve: float = DEFAULT_RESERVE,
    environ: Mapping[str, str] = os.environ,
    now: float | None = None,
    told: float | None = None,
    done: float = 0.0,
) -> str | None:
    """Return a message if `time_limit` and `reserve` seconds do not fit into the job's remaining time.

    `time_limit` is the length of the core phase, of which `done` seconds are over in a run that goes on;
    `reserve` is the time after it; for `told` see `remaining`. None if they fit, or if the remaining time is
    not known.
    """
    left = remaining(environ, now, told)
    if left is None or time_limit - done + reserve <= left:
        return None
    fitting = int(left - reserve + done)
    advice = (
        f"pass --time-limit {fitting} at most, or ask for a longer job"
        if fitting >= 1 + done
        else "ask for a longer job"
    )
    return (
        f"--time-limit {time_limit:g} s and {reserve:g} s to validate and write the result do not fit into "
        f"the {left:.0f} s that this job has left; {advice}"
    )
