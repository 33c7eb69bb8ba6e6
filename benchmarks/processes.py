# SPDX-License-Identifier: Apache-2.0
"""Run a command of this program, and measure its processes while it runs: processor time, resident memory."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from aiperf_mpi.launchers import rank_of

ROOT = Path(__file__).resolve().parent.parent

#: Seconds between two looks at the processes.
_LOOK_SECONDS = 0.5

#: Seconds that a command has to end after a signal, before it is killed.
_END_SECONDS = 120.0

#: Without these variables, Open MPI refuses to run as root or with more ranks than cores; MPICH ignores them.
LAUNCH = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


@dataclass
class Usage:
    """What a command has taken so far.

    Attributes:
        seconds, cpu_seconds: elapsed time, and processor time of the process that was started.
        peaks: peak resident bytes (VmHWM) of each process of the command, by its number; None is the name of
            the process that was started, where no launcher has given it a number.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peaks: dict[int | None, int] = field(default_factory=dict)


def peak_bytes(process: int | str = "self") -> int:
    """Return the peak resident memory of a process in bytes, VmHWM. Raises OSError where it is gone."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise ProcessLookupError(f"process {process} has ended")


def reset_peak() -> None:
    """Make the present resident memory of this process its peak; Linux alone can. Raises OSError."""
    Path("/proc/self/clear_refs").write_text("5")


def look(job: subprocess.Popen[bytes], usage: Usage) -> None:
    """Note the peaks of a command's processes, and its processor time; those that have ended are left out."""
    with suppress(psutil.Error, OSError):
        root = psutil.Process(job.pid)
        times = root.cpu_times()
        usage.cpu_seconds = times.user + times.system
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error, OSError):
                number = rank_of(process.environ())
                # What a rank has started has no variables of the launcher, or a parent with the same rank.
                its = process.parent() if number is not None else None
                if process.pid == job.pid or (number is not None and its and not _is_rank(its, number)):
                    usage.peaks[number] = max(usage.peaks.get(number, 0), peak_bytes(process.pid))


def _is_rank(process: psutil.Process, number: int) -> bool:
    with suppress(psutil.Error, OSError):
        return rank_of(process.environ()) == number
    return False


def watched(
    words: Sequence[str | Path],
    log: Path,
    limit: float,
    seen: Callable[[Usage], bool] = lambda usage: False,
    env: Mapping[str, str] | None = None,
) -> tuple[int, Usage]:
    """Run a command with all it prints in `log`; return its exit code and what it took.

    Arguments:
        limit: seconds after which it gets USR1, and is killed somewhat later.
        seen: is called twice a second with what it has taken; once it returns True, the command gets USR1.

    """
    usage, started = Usage(), time.monotonic()
    with log.open("ab") as out, _started(words, out.fileno(), env) as job:
        asked = 0.0
        while job.poll() is None:
            look(job, usage)
            now = time.monotonic()
            usage.seconds = now - started
            if not asked and (seen(usage) or usage.seconds > limit):
                asked = now
                job.send_signal(signal.SIGUSR1)
            if asked and now - asked > _END_SECONDS:
                os.killpg(job.pid, signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)
        return job.returncode, usage


@contextmanager
def _started(
    words: Sequence[str | Path], out: int, env: Mapping[str, str] | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a process group of its own; none of it is left afterwards."""
    job = subprocess.Popen(
        [str(word) for word in words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
        env={**os.environ, **LAUNCH, "PYTHONPATH": str(ROOT), **(env or {})},
    )
    try:
        yield job
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
