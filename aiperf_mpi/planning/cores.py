# SPDX-License-Identifier: Apache-2.0
"""Judge the cores of a job's ranks: whether a launcher has taken away what their hosts have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiperf_mpi.config import Config
from aiperf_mpi.machine.affinity import parse_ranges, ranges
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.rank_resources import RankResources, place

SUBJECT = "affinity"

#: A remedy for a number of cores that a rank should have.
Remedy = Callable[[int], str]


def threads(config: Config, role: str) -> int:
    """Return the threads of a rank that compute at the same time: the step, and those that prepare images."""
    return 1 + config.data.workers if role == "trainer" else 1


def judge(everyone: Sequence[RankResources], config: Config, option: Remedy) -> tuple[Finding, ...]:
    """Return a warning for each way in which ranks have fewer cores than they could have.

    `everyone` are all ranks; `option` gives the launcher's option that mends it. Hosts with the same fault
    share a warning.
    """
    hosts: dict[str, list[RankResources]] = {}
    for one in everyone:
        if one.cpus:
            hosts.setdefault(one.host, []).append(one)
    faults: dict[tuple[str, str], list[RankResources]] = {}
    for ranks in hosts.values():
        fault = _shared(ranks, option) or _few(ranks, config, option) or _less_than_given(ranks, option)
        for text, remedy, concerned in fault or _small(ranks, config):
            faults.setdefault((text, remedy), []).extend(concerned)
    found = [
        Finding("warn", SUBJECT, f"{place([r.rank for r in who], [r.host for r in who])} {text}", remedy)
        for (text, remedy), who in faults.items()
    ]
    return tuple(found) or (_fine(everyone),)


#: A fault of some ranks of a host: text, remedy, the ranks.
_Fault = list[tuple[str, str, list[RankResources]]]


def _fine(everyone: Sequence[RankResources]) -> Finding:
    told = [len(parse_ranges(one.cpus)) for one in everyone if one.cpus]
    if not told:
        return Finding("ok", SUBJECT, "this system does not tell the cores of a process")
    low, high = min(told), max(told)
    each = f"{low}" if low == high else f"{low} to {high}"
    return Finding("ok", SUBJECT, f"each rank may use {each} core{'s' * (high > 1)}")


def _shared(ranks: Sequence[RankResources], option: Remedy) -> _Fault:
    """Find ranks that share cores although their host has one for each."""
    to_have, sets = _to_have(ranks), [parse_ranges(one.cpus) for one in ranks]
    if len(ranks) > to_have or _matched(sets) == len(ranks):
        # There may be more ranks than cores, but then no core must be left that no rank may use.
        if len(ranks) <= to_have or len(set().union(*sets)) >= to_have:
            return []
    every = [(cpus, [one for one, own in zip(ranks, sets, strict=True) if own <= cpus]) for cpus in sets]
    crowded = [(cpus, who) for cpus, who in every if len(who) > len(cpus)]
    cpus, who = min(crowded, key=lambda pair: len(pair[0])) if crowded else (set().union(*sets), list(ranks))
    text = f"share {_cores(cpus)}, although their host has {to_have} cores for them"
    return [(text, option(max(1, to_have // len(ranks))), who)]


def _few(ranks: Sequence[RankResources], config: Config, option: Remedy) -> _Fault:
    """Find trainers with fewer cores than threads, although their host has more."""
    to_have, found = _to_have(ranks), list[tuple[str, str, list[RankResources]]]()
    for one in ranks:
        own, need = len(parse_ranges(one.cpus)), threads(config, one.role)
        if own < min(need, to_have):
            text = f"may use {own} of {to_have} cores, but has {need} threads (data.workers and the step)"
            found.append((text, option(min(need, to_have)), [one]))
    return found


def _less_than_given(ranks: Sequence[RankResources], option: Remedy) -> _Fault:
    """Find a host whose ranks may use fewer cores than the job was given there, or than a task was."""
    to_have, used = _to_have(ranks), set().union(*(parse_ranges(one.cpus) for one in ranks))
    given = max(ranks, key=lambda one: one.given)
    if len(used) < min(given.given, to_have):
        text = f"may use {_cores(used)}, but the job was given {given.given} there ({given.given_by})"
        return [(text, option(max(1, min(given.given, to_have) // len(ranks))), list(ranks))]
    found: _Fault = []
    for one in ranks:
        own = len(parse_ranges(one.cpus))
        if own < min(one.each, to_have):
            found.append(
                (f"may use {own} of {one.each} cores of a task ({one.each_by})", option(one.each), [one])
            )
    return found


def _small(ranks: Sequence[RankResources], config: Config) -> _Fault:
    """Find a host of which the job has too few cores for the ranks, although the host has more."""
    to_have, online = _to_have(ranks), max(one.online for one in ranks)
    need = max(len(ranks), *(threads(config, one.role) for one in ranks))
    if to_have < min(need, online):
        text = f"may use {to_have} of the host's {online} cores, but {need} threads or ranks compute at once"
        remedy = (
            "ask the batch system or the container for more cores (Slurm --cpus-per-task, PBS ncpus=, docker "
            "--cpuset-cpus), or start fewer ranks on a host"
        )
        return [(text, remedy, list(ranks))]
    return []


def _to_have(ranks: Sequence[RankResources]) -> int:
    """Return how many CPUs of a host the ranks could use without a binding: those that the job has there."""
    cpus: set[int] = set().union(*(parse_ranges(one.to_have) | parse_ranges(one.cpus) for one in ranks))
    given = max(one.given for one in ranks)
    return min(len(cpus), given or len(cpus))


def _matched(sets: Sequence[set[int]]) -> int:
    """Return how many ranks can have a CPU of their own (a maximum matching, by augmenting paths)."""
    owner: dict[int, int] = {}

    def give(rank: int, tried: set[int]) -> bool:
        for cpu in sets[rank]:
            if cpu not in tried:
                tried.add(cpu)
                if cpu not in owner or give(owner[cpu], tried):
                    owner[cpu] = rank
                    return True
        return False

    return sum(give(rank, set()) for rank in range(len(sets)))


def _cores(cpus: set[int]) -> str:
    return f"core {next(iter(cpus))}" if len(cpus) == 1 else f"{len(cpus)} cores ({ranges(cpus, 24)})"
