# SPDX-License-Identifier: Apache-2.0
"""Merge what the ranks of a job have found: equal findings become one, with the ranks that have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiperf_mpi.machine.affinity import ranges
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.rank_resources import ranks_in_words
from aiperf_mpi.printable import counted

#: Subjects in the order in which they are shown; others come after them.
SUBJECTS = (
    "Python",
    "MPI",
    "configuration",
    "roles",
    "versions",
    "program",
    "variables",
    "affinity",
    "memory",
    "processes",
    "CPU time",
    "shared memory",
    "accelerators",
    "JAX",
    "network",
    "output",
    "scratch",
    "data set",
    "staging",
    "clocks",
    "batch system",
    "wall time",
    "official run",
)

#: Levels, the worst first.
LEVELS = ("fail", "warn", "ok")

#: Most different findings of one subject and level that are shown; the others are counted.
MOST_ALIKE = 2

#: Most characters of a list of ranks.
_MOST_RANKS = 24


@dataclass(frozen=True, slots=True)
class Seen:
    """A finding and where it was made.

    Attributes:
        finding: what was found.
        ranks: the ranks that have found it, ascending; empty for a process without a launcher.
        hosts: the hosts of these ranks.
        everywhere: whether all ranks with a finding of this subject have found it.
    """

    finding: Finding
    ranks: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    everywhere: bool = True

    @property
    def where(self) -> str:
        """The ranks and hosts in words; "" where it holds everywhere, or for one process."""
        return "" if self.everywhere or not self.ranks else place(self.ranks, self.hosts)

    def to_dict(self) -> dict[str, Any]:
        """Return the finding for JSON, with the ranks as ranges and the number of hosts."""
        told: dict[str, Any] = dict(self.finding.to_dict())
        return {
            **told,
            "ranks": ranges(self.ranks),
            "hosts": len(self.hosts),
            "host": min(self.hosts, default=""),
        }


def place(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Return ranks and their hosts in words: "rank 3 on n2", "ranks 4-99 on 24 hosts"."""
    where = hosts[0] if len(hosts) == 1 else counted(len(hosts), "host")
    return f"{ranks_in_words(ranks, _MOST_RANKS)} on {where}"


def merge(found: Iterable[tuple[Sequence[int], Sequence[Finding]]], hosts: Sequence[str]) -> tuple[Seen, ...]:
    """Merge findings: `found` has ranks and what each of them has found, `hosts` the host of each rank.

    The subjects come in the order of SUBJECTS, in each the worst level first. Of many different findings
    with one subject and level the first MOST_ALIKE remain, and the last of these has the ranks of the others.
    """
    of_finding: dict[Finding, set[int]] = {}
    of_subject: dict[str, set[int]] = {}
    for ranks, findings in found:
        for finding in findings:
            of_finding.setdefault(finding, set()).update(ranks)
            of_subject.setdefault(finding.subject, set()).update(ranks)

    alike: dict[tuple[str, str], list[Seen]] = {}
    for finding, own in of_finding.items():
        ranks = tuple(sorted(own))
        names = tuple(dict.fromkeys(hosts[rank] for rank in ranks if rank < len(hosts)))
        seen = Seen(finding, ranks, names, own == of_subject[finding.subject])
        alike.setdefault((finding.subject, finding.level), []).append(seen)
    order = sorted(alike, key=lambda key: (_place(SUBJECTS, key[0]), LEVELS.index(key[1])))
    return tuple(seen for key in order for seen in _shortened(alike[key]))


def _shortened(seen: list[Seen]) -> list[Seen]:
    """Return at most MOST_ALIKE findings of one subject and level; of those that are fine, one."""
    seen = sorted(seen, key=lambda one: one.ranks)
    most = 1 if seen[0].finding.level == "ok" else MOST_ALIKE
    if len(seen) <= most:
        return seen
    kept, rest = seen[:most], seen[most - 1 :]
    first = kept[-1].finding
    ranks = tuple(sorted({rank for one in rest for rank in one.ranks}))
    hosts = tuple(dict.fromkeys(host for one in rest for host in one.hosts))
    example = f"{first.text} (rank {rest[0].ranks[0]}; similar on the others)"
    last = Finding(first.level, first.subject, example, first.remedy)
    return [*kept[:-1], Seen(last, ranks, hosts, len(kept) == 1 and _all(seen))]


def _all(seen: Sequence[Seen]) -> bool:
    """Return whether no rank has a finding of another level on this subject, as far as these show."""
    return seen[0].finding.level == "ok"


def _place(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)
