# SPDX-License-Identifier: Apache-2.0
"""Judge the cores of a job's ranks: whether a launcher has taken away what their hosts have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, reduce
from operator import or_

from aiperf_mpi.config import Config
from aiperf_mpi.machine.affinity import parse_ranges, ranges
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.rank_resources import RankResources, place
from aiperf_mpi.printable import counted

SUBJECT = "affinity"

#: A remedy for a number of cores that a rank should have.
Remedy = Callable[[int], str]


def threads(config: Config, role: str) -> int:
    """Return the threads of a rank that compute at the same time: the step, and those that prepare images.

    Without `data.workers`, they are as many as its cores, and one is the least.
    """
    return 1 + max(1, config.data.workers) if role == "trainer" else 1


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
    told = [_mask(one.cpus).bit_count() for one in everyone if one.cpus]
    if not told:
        return Finding("ok", SUBJECT, "this system does not tell the cores of a process")
    low, high = min(told), max(told)
    each = counted(high, "core") if low == high else f"{low} to {counted(high, 'core')}"
    return Finding("ok", SUBJECT, f"each rank may use {each}")


def _shared(ranks: Sequence[RankResources], option: Remedy) -> _Fault:
    """Find ranks that share cores although their host has one for each."""
    to_have, masks = _to_have(ranks), [_mask(one.cpus) for one in ranks]
    # There may be more ranks than cores, but then no core must be left that no rank may use.
    if len(ranks) > to_have and _union(masks).bit_count() >= to_have:
        return []
    crowded = _crowded(masks)
    if not crowded:
        return []
    who = [one for one, own in zip(ranks, masks, strict=True) if not own & ~crowded]
    text = f"share {_cores(crowded)}, although their host has {to_have} cores for them"
    return [(text, option(max(1, to_have // len(ranks))), who)]


def _few(ranks: Sequence[RankResources], config: Config, option: Remedy) -> _Fault:
    """Find trainers with fewer cores than threads, although their host has more."""
    to_have, found = _to_have(ranks), list[tuple[str, str, list[RankResources]]]()
    for one in ranks:
        own, need = _mask(one.cpus).bit_count(), threads(config, one.role)
        if own < min(need, to_have):
            text = f"may use {own} of {to_have} cores, but has {need} threads (data.workers and the step)"
            found.append((text, option(min(need, to_have)), [one]))
    return found


def _less_than_given(ranks: Sequence[RankResources], option: Remedy) -> _Fault:
    """Find a host whose ranks may use fewer cores than the job was given there, or than a task was.

    The batch system may count the hardware threads of a core of which a rank is bound to one.
    """
    to_have, used = _to_have(ranks), _union(_mask(one.cpus) for one in ranks)
    given = max(ranks, key=lambda one: one.given)
    if _union(map(_reached, ranks)).bit_count() < min(given.given, to_have):
        text = f"may use {_cores(used)}, but the job was given {given.given} there ({given.given_by})"
        return [(text, option(max(1, min(given.given, to_have) // len(ranks))), list(ranks))]
    found: _Fault = []
    for one in ranks:
        if _reached(one).bit_count() < min(one.each, to_have):
            own = _mask(one.cpus).bit_count()
            found.append(
                (f"may use {own} of {one.each} cores of a task ({one.each_by})", option(one.each), [one])
            )
    return found


def _small(ranks: Sequence[RankResources], config: Config) -> _Fault:
    """Find a host of which the job has too few cores for the ranks, although the host has more.

    A batch system that counts cores may have given all of their hardware threads.
    """
    to_have, online = _to_have(ranks, by_core=True), max(one.online for one in ranks)
    need = max(len(ranks), *(threads(config, one.role) for one in ranks))
    if to_have < min(need, online):
        text = f"may use {to_have} of the host's {online} cores, but {need} threads or ranks compute at once"
        remedy = (
            "ask the batch system or the container for more cores (Slurm --cpus-per-task, PBS ncpus=, docker "
            "--cpuset-cpus), or start fewer ranks on a host"
        )
        return [(text, remedy, list(ranks))]
    return []


def _to_have(ranks: Sequence[RankResources], *, by_core: bool = False) -> int:
    """Return how many CPUs of a host the ranks could use without a binding: those that the job has there.

    `by_core` takes the batch system's number as one of cores, with all of their hardware threads.
    """
    cpus = _union(_mask(one.to_have) | _mask(one.cpus) for one in ranks).bit_count()
    given = max(one.given * (one.core_threads if by_core else 1) for one in ranks)
    return min(cpus, given or cpus)


# -- sets of CPUs, as the bits of a number ---------------------------------------------------------


@lru_cache(maxsize=4096)
def _mask(text: str) -> int:
    """Return ranges of CPUs as a number with a bit for each."""
    return sum(1 << cpu for cpu in parse_ranges(text))


def _union(masks: Iterable[int]) -> int:
    return reduce(or_, masks, 0)


def _reached(one: RankResources) -> int:
    """Return the CPUs of all cores of which a rank may use at least one hardware thread."""
    return _mask(one.cpus) | _mask(one.with_siblings)


def _bits(mask: int) -> Iterator[int]:
    """Yield the CPUs of a mask, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _crowded(masks: Sequence[int]) -> int:
    """Return CPUs that are fewer than the ranks which may use no others, or 0 if each rank can have its own.

    Ranks take CPUs one after the other (a matching by augmenting paths); where the paths from one of them
    reach no free CPU, those that they reach are too few (Hall's theorem).
    """
    owner: dict[int, int] = {}  # of a CPU
    holds: dict[int, int] = {}  # the CPU of a rank
    used = 0
    for start in range(len(masks)):
        reached, by, queue = 0, dict[int, int](), [start]
        for rank in queue:
            new = masks[rank] & ~reached
            if free := new & ~used:
                break
            reached |= new
            for cpu in _bits(new):
                by[cpu] = rank
                queue.append(owner[cpu])
        else:
            return reached
        # Along the path back to `start`, each rank gives its CPU to the one before it.
        cpu, used = next(_bits(free)), used | free & -free
        while True:
            before = holds.get(rank)
            owner[cpu], holds[rank] = rank, cpu
            if before is None:
                break
            cpu, rank = before, by[before]
    return 0


def _cores(mask: int) -> str:
    cpus = list(_bits(mask))
    return f"core {cpus[0]}" if len(cpus) == 1 else f"{len(cpus)} cores ({ranges(cpus, 24)})"
