# SPDX-License-Identifier: Apache-2.0
"""Ask the batch system for the time that a job has left, where no variable tells it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping

from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.walltime import VARIABLES
from aiperf_mpi.probe import NotKnown, probe

#: Seconds that a batch system has to answer.
ANSWER_SECONDS = 5.0

_CLOCK = re.compile(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)")


def asked_end(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return when this job ends, asked only where no variable tells a time to come."""
    now = time.time()
    name = next((name for name in VARIABLES if environ.get(name)), None)
    try:
        asks = name is None or float(environ[name]) <= now
    except ValueError:
        return None
    told = probe("the job's end", job_end, environ, now, seconds=None) if asks else None
    return None if isinstance(told, NotKnown) else told


def job_end(environ: Mapping[str, str] = os.environ, now: float | None = None) -> float | None:
    """Return when this job ends, in seconds since 1970, by Slurm's squeue or PBS's qstat.

    None outside of a job, and where the batch system gives no answer within ANSWER_SECONDS. This starts a
    process, so call it before MPI's initialisation.
    """
    now = time.time() if now is None else now
    if job := environ.get("SLURM_JOB_ID", ""):
        left = seconds(_answer(["squeue", "-h", "-j", job, "-o", "%L"], environ))
    elif job := environ.get("PBS_JOBID", ""):
        left = left_by_qstat(_answer(["qstat", "-f", job], environ))
    else:
        return None
    return None if left is None else now + left


def seconds(text: str) -> int | None:
    """Return the seconds of a time as `2-03:04:05`, `03:04:05` or `04:05`; None for any other text."""
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, rest = (int(group or 0) for group in match.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + rest


def left_by_qstat(text: str) -> int | None:
    """Return the seconds of wall time that are left, by the full status of qstat; None without it."""
    limit = re.search(r"Resource_List\.walltime = (\S+)", text)
    used = re.search(r"resources_used\.walltime = (\S+)", text)
    whole = seconds(limit[1]) if limit else None
    return None if whole is None else whole - ((seconds(used[1]) if used else 0) or 0)


def judge_job(environ: Mapping[str, str] = os.environ) -> tuple[Finding, ...]:
    """Return a failure where SLURM_JOB_ID names a job that has ended, as in a shell that outlived its job.

    MPICH's mpiexec then starts its processes by srun, which waits for the job.
    """
    job = environ.get("SLURM_JOB_ID", "")
    if not job or job.startswith("-") or not shutil.which("squeue", path=environ.get("PATH")):
        return ()
    try:
        done = _run(["squeue", "-h", "-j", job, "-o", "%T"], environ)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    # An ended job gives an empty answer, one that Slurm has forgotten this error; other errors say nothing.
    if done.stdout.strip() or (done.returncode and "Invalid job id" not in done.stderr):
        return ()
    text = f"SLURM_JOB_ID={job[:80]}: Slurm has no such job now, and MPICH's mpiexec waits for it in srun"
    remedy = "unset SLURM_JOB_ID SLURM_JOBID SLURM_NODELIST, or leave the shell of that job; or export "
    return (Finding("fail", "batch system", text, f"{remedy}HYDRA_LAUNCHER=fork for ranks on this host"),)


def _run(command: list[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the batch system for ANSWER_SECONDS at most."""
    return subprocess.run(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=ANSWER_SECONDS,
    )


def _answer(command: list[str], environ: Mapping[str, str]) -> str:
    """Return what a command prints; "" if it is missing, fails, or takes too long."""
    if shutil.which(command[0], path=environ.get("PATH")) is None or command[-1].startswith("-"):
        return ""
    try:
        done = _run(command, environ)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    return done.stdout if done.returncode == 0 else ""
