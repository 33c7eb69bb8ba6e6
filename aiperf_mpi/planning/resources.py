# SPDX-License-Identifier: Apache-2.0
"""Judge what the ranks of a job may use of their hosts: cores, memory, processes and CPU time.

A thread that the system refuses ends a rank with a library's own text, perhaps after an hour; a rank that has
used its CPU time is killed without one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from aiperf_mpi.config import Config
from aiperf_mpi.machine.affinity import parse_ranges
from aiperf_mpi.machine.limits import Level
from aiperf_mpi.planning import cores, memory
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.memory import Need
from aiperf_mpi.planning.rank_resources import RankResources, place
from aiperf_mpi.planning.walltime import DEFAULT_RESERVE

PROCESSES, CPU_TIME = "processes", "CPU time"

#: Threads that a rank starts after the checks by role: a number, and as many more for each core that it may
#: use; surely, and as a rule (measured on CPUs: a trainer 13 with 1 core, 22 with 2; if told of 16 and 64
#: cores that were not there, it had 121 and 377 in all).
_TRAINER, _GENERATOR, _COORDINATOR = (Need(8, 14), Need(4, 6)), (Need(0, 1), Need(0, 1)), (Need(1, 4), Need())

#: Threads of a rank before the checks in addition to those of OpenBLAS, the most that this has, and the
#: variables that lower it.
_BEFORE, _MOST_BLAS, _BLAS = 2, 64, ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")

#: Part of the processes that are left which a run may need before a warning.
_TIGHT = 0.8

#: CPU seconds of a rank before the core time (measured: 5 to 8).
_START_SECONDS = 60.0

_MORE_SECONDS = (
    "ulimit -t unlimited, before the launcher and on each host; where that is forbidden, as on many login "
    "nodes, start the run as a job of the batch system"
)


def judge(
    everyone: Sequence[RankResources], config: Config, option: cores.Remedy, windows: Mapping[str, int]
) -> tuple[Finding, ...]:
    """Return the findings on cores, memory, processes and CPU time.

    Arguments:
        everyone: what each rank may use.
        option: the launcher's option by which each rank gets a number of cores.
        windows: bytes of the windows on each host.
    """
    ranks = sorted(everyone, key=lambda one: one.rank)
    return (
        *memory.judge(ranks, config, windows),
        *cores.judge(ranks, config, option),
        *judge_processes(ranks, config),
        *judge_cpu_time(ranks, config),
    )


# -- processes and threads -------------------------------------------------------------------------


def _new_threads(rank: RankResources, config: Config, begun: bool) -> Need:
    """Return the threads that a rank starts after the checks; all of them if it has not begun."""
    trains, coordinates = rank.role == "trainer", rank.role == "coordinator"
    once, each = _TRAINER if trains else _COORDINATOR if coordinates else _GENERATOR
    own = max(1, len(parse_ranges(rank.cpus)))
    used = max(own, config.parallel.host_devices) if trains else own
    before = 0
    if not begun:
        # Rank 0 has a writer process.
        before = (1 + coordinates) * (_BEFORE + _blas(own)) - coordinates
    # With an accelerator, XLA may leave out its threads for the CPU.
    least = once.least + (each.least * used if rank.on_cpu else 0)
    workers = config.data.threads(own) if trains else 0
    return Need(before + least, before + once.as_a_rule + each.as_a_rule * used + workers)


def _blas(own: int, environ: Mapping[str, str] = os.environ) -> int:
    """Return the threads of NumPy's linear algebra in a process that may use `own` cores."""
    told = (environ.get(name, "") for name in _BLAS)
    return min(own, _MOST_BLAS, *(int(text) for text in told if text.isdecimal() and int(text)))


def judge_processes(
    everyone: Sequence[RankResources], config: Config, *, begun: bool = True, others: int = 0
) -> tuple[Finding, ...]:
    """Return a failure for each limit on processes and threads that does not suffice, a warning for a tight
    one.

    Where the ranks have not begun, what they have already are the threads of `doctor`, which end before;
    `others` are the launcher's processes.
    """
    found = []
    for level, ranks in memory.limits(everyone, "processes"):
        needs = [_new_threads(one, config, begun) for one in ranks]
        least, as_a_rule = (
            int(sum(getattr(need, kind) for need in needs)) + others for kind in ("least", "as_a_rule")
        )
        free = level.free if begun else level.free + sum(one.threads for one in ranks)
        where = place([one.rank for one in ranks], [one.host for one in ranks])
        left = f"{_file(level)} leaves {free} of {level.limit}"
        enough = _rounded(level.limit - free + as_a_rule / _TIGHT)
        if least > free:
            text = f"{where}: at least {least} more processes and threads are needed, but {left}"
            found.append(Finding("fail", PROCESSES, text, _more_processes(level, enough)))
        elif as_a_rule > _TIGHT * free:
            text = f"{where}: about {as_a_rule} more processes and threads are needed, and {left}"
            found.append(Finding("warn", PROCESSES, text, _more_processes(level, enough)))
    if found:
        return tuple(dict.fromkeys(found))
    known = [level.free for one in everyone for level in one.processes]
    fine = f"{min(known)} or more can be started on a host" if known else "no limit of a host is known"
    return (Finding("ok", PROCESSES, fine),)


def _file(level: Level) -> str:
    """Return where a limit on processes is set."""
    return level.name if level.name.startswith("ulimit") else f"{level.name}/pids.max"


def _rounded(number: float) -> int:
    """Return a number of processes as one would write it: a multiple of 64."""
    return 64 * math.ceil(number / 64)


def _more_processes(level: Level, enough: int) -> str:
    """Return what allows more processes at this level, or needs fewer."""
    fewer = "start fewer ranks on a host, or bind each to fewer cores"
    if level.name.startswith("ulimit"):
        return f"{level.name} {enough}, before the launcher and on each host, or {fewer}"
    return (
        f"set this limit to {enough} or more (systemd: systemctl set-property UNIT TasksMax={enough}; "
        f"container: docker run --pids-limit {enough}; else ask the site), or {fewer}"
    )


# -- CPU time --------------------------------------------------------------------------------------


def judge_cpu_time(everyone: Sequence[RankResources], config: Config) -> tuple[Finding, ...]:
    """Return a failure where a trainer's CPU seconds end in its core time, a warning where that may be."""
    faults: dict[tuple[str, int, str], list[RankResources]] = {}
    for one in everyone:
        for level in one.seconds:
            need = _seconds_of(one, config)
            kind = "fail" if need.least > level.free else "warn" if need.as_a_rule > level.free else ""
            if kind:
                faults.setdefault((kind, level.limit, one.role), []).append(one)
    found = []
    for (kind, limit, _), ranks in faults.items():
        need = max((_seconds_of(one, config) for one in ranks), key=lambda one: one.as_a_rule)
        where = place([one.rank for one in ranks], [one.host for one in ranks])
        left = f"ulimit -t leaves {min(one.seconds[0].free for one in ranks)} of {limit}, then kills the rank"
        if kind == "fail":
            text = f"{where}: at least {need.least:.0f} CPU seconds are needed, but {left}"
            found.append(Finding("fail", CPU_TIME, text, _MORE_SECONDS))
        else:
            text = f"{where}: up to {need.as_a_rule:.0f} CPU seconds may be used, but {left}"
            found.append(Finding("warn", CPU_TIME, text, _MORE_SECONDS))
    if found:
        return tuple(found)
    known = [level.free for one in everyone for level in one.seconds]
    fine = f"{min(known)} CPU seconds or more are left to each rank" if known else "no rank has a limit"
    return (Finding("ok", CPU_TIME, fine),)


def _seconds_of(rank: RankResources, config: Config) -> Need:
    """Return the CPU seconds that a rank uses: surely, and if it uses all cores that it may.

    A trainer on CPUs computes without pause; one with an accelerator may wait for it.
    """
    length = config.run.time_limit
    trains = rank.role == "trainer"
    own = len(parse_ranges(rank.cpus)) if trains else 1
    most = _START_SECONDS + max(1, own) * (length + (DEFAULT_RESERVE if trains else 0))
    return Need(length if trains and rank.on_cpu else 0, most)
