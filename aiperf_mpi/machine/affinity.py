# SPDX-License-Identifier: Apache-2.0
"""Find the CPUs that a process may use, and their NUMA nodes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

#: CPUs that are wished for: as many as glibc's set of CPUs holds.
_MOST_CPUS = 1024

_NODES, _CPUS = Path("/sys/devices/system/node"), Path("/sys/devices/system/cpu")


def cpus_of_process() -> tuple[int, ...]:
    """Return the CPUs that this process may use, ascending; empty if they are not reported (macOS)."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def cpus_to_have() -> tuple[int, ...]:
    """Return the CPUs that this process may choose from, ascending: those of its control group and its host.

    A launcher's binding takes some of them away; the kernel cuts a wider wish to these. The binding of this
    process is as before afterwards.
    """
    before = cpus_of_process()
    if not before:
        return ()
    try:
        os.sched_setaffinity(0, range(max(before[-1] + 1, os.cpu_count() or 1, _MOST_CPUS)))
        return cpus_of_process()
    except OSError:
        return before
    finally:
        os.sched_setaffinity(0, before)


def ranges(numbers: Iterable[int], most: int = 0) -> str:
    """Format numbers as a list of ranges in the kernel's form: `0-3,8`.

    A text longer than `most` characters (0: no limit) is cut between two ranges and ends with `...`.
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    if most and sum(map(len, parts)) + len(parts) - 1 > most:
        ends = accumulate(len(part) + 1 for part in parts)
        parts = [*parts[: sum(1 for end in ends if end + len("...") <= most)], "..."]
    return ",".join(parts)


def parse_ranges(text: str) -> set[int]:
    """Return the numbers of a list of ranges. Raises ValueError for any other text."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def with_siblings(cpus: Iterable[int], folder: Path = _CPUS) -> tuple[int, ...]:
    """Return these CPUs and the other hardware threads of their cores, ascending.

    A CPU of which the kernel tells nothing is a core of its own.
    """
    every: set[int] = set()
    for cpu in cpus:
        if cpu not in every:
            try:
                text = (folder / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
            except OSError:
                text = ""
            every |= parse_ranges(text) | {cpu}
    return tuple(sorted(every))


def numa_nodes(cpus: Iterable[int], folder: Path = _NODES) -> tuple[int, ...]:
    """Return the NUMA nodes that have any of these CPUs, ascending; empty if `folder` shows no node."""
    mine = set(cpus)
    nodes = []
    for path in folder.glob("node[0-9]*/cpulist"):
        if mine & parse_ranges(path.read_text()):
            nodes.append(int(path.parent.name.removeprefix("node")))
    return tuple(sorted(nodes))
