# SPDX-License-Identifier: Apache-2.0
"""What a rank may use of its host (cores, memory, processes, CPU time), and what its job was given there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aiperf_mpi.machine.affinity import cpus_of_process, cpus_to_have, ranges, with_siblings
from aiperf_mpi.machine.limits import Level, cpu_levels, levels, process_levels, threads_now

#: Variables with the cores of the job on this host: Slurm's, and PBS's for a job that says it is one.
_CORES_OF_JOB = (("SLURM_CPUS_ON_NODE", "SLURM_JOB_ID"), ("NCPUS", "PBS_JOBID"))

#: Most characters of a list of ranks or CPUs in a message, and hosts that are named in it.
_MOST_CHARACTERS, _MOST_HOSTS = 24, 3


@dataclass(frozen=True, slots=True)
class RankResources:
    """What one rank may use.

    Attributes:
        rank, host, role: this rank's.
        cpus: CPUs that it may use, as ranges; "" where the system does not tell.
        to_have: CPUs that its control group allows, as ranges: a binding takes some of them away.
        online: CPUs of the host.
        given, given_by: CPUs that the job was given on this host, and the variable that says so; 0 and "".
        each, each_by: the same for this task.
        on_cpu: whether it is a trainer that computes on the CPUs.
        memory: the limits on its memory.
        with_siblings: `cpus` and the other hardware threads of their cores, as ranges.
        core_threads: hardware threads of a core; Slurm may count a core as one CPU.
        processes: the limits on processes and threads.
        threads: that this rank has already.
        seconds: the limit on its CPU seconds.
    """

    rank: int
    host: str
    role: str
    cpus: str = ""
    to_have: str = ""
    online: int = 0
    given: int = 0
    given_by: str = ""
    each: int = 0
    each_by: str = ""
    on_cpu: bool = False
    memory: tuple[Level, ...] = ()
    with_siblings: str = ""
    core_threads: int = 1
    processes: tuple[Level, ...] = ()
    threads: int = 0
    seconds: tuple[Level, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes for JSON."""
        return asdict(self)


#: The attributes that are limits.
_LEVELS = ("memory", "processes", "seconds")


def from_dict(told: Mapping[str, Any]) -> RankResources:
    """Return what `to_dict` has told."""
    levels_of = {name: tuple(Level(**one) for one in told[name]) for name in _LEVELS}
    return RankResources(**{**told, **levels_of})


def own_resources(
    rank: int, host: str, role: str, on_cpu: bool = False, environ: Mapping[str, str] = os.environ
) -> RankResources:
    """Return what this process may use, as the rank `rank` with its role."""
    given, given_by = next(
        (
            (_count(environ, name), name)
            for name, job in _CORES_OF_JOB
            if job in environ and _count(environ, name)
        ),
        (0, ""),
    )
    each = _count(environ, "SLURM_CPUS_PER_TASK") if "SLURM_JOB_ID" in environ else 0
    cpus, to_have = cpus_of_process(), cpus_to_have()
    return RankResources(
        rank,
        host,
        role,
        ranges(cpus),
        ranges(to_have),
        os.cpu_count() or 0,
        given,
        given_by,
        each,
        "SLURM_CPUS_PER_TASK" if each else "",
        on_cpu,
        levels(),
        ranges(with_siblings(cpus)),
        len(with_siblings(to_have[:1])) or 1,
        process_levels(),
        threads_now(),
        cpu_levels(),
    )


def _count(environ: Mapping[str, str], name: str) -> int:
    """Return the positive number in a variable; 0 for any other text."""
    text = environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def place(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Return ranks and their hosts in words: "rank 3 on n2", "ranks 4-99 on 24 hosts (n1, n2, n3, ...)"."""
    names = list(dict.fromkeys(hosts))
    listed = ", ".join(names[:_MOST_HOSTS]) + (", ..." if len(names) > _MOST_HOSTS else "")
    where = names[0] if len(names) == 1 else f"{len(names)} hosts ({listed})"
    return f"{ranks_in_words(ranks, _MOST_CHARACTERS)} on {where}"


def ranks_in_words(ranks: Sequence[int], most: int) -> str:
    """Return ranks in words, as "rank 3" or "ranks 4-99"; `most` characters for their numbers."""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {ranges(ranks, most)}"
