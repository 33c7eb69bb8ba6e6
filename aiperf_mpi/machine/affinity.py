# SPDX-License-Identifier: Apache-2.0
"""Where a process may run: its CPUs, and the NUMA nodes that they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_NODES = Path("/sys/devices/system/node")


def cpus_of_process() -> tuple[int, ...]:
    """The CPUs that this process may use, ascending; empty where the system does not tell (macOS)."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def ranges(numbers: Iterable[int], most: int = 0) -> str:
    """Numbers as a list of ranges, as the kernel writes them: `0-3,8`.

    Of a text longer than `most` characters (0: any) whole ranges are kept, and `...` says that there are
    more.
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    text = ",".join(words)
    while most and len(text) > most:
        words.pop()
        text = ",".join([*words, "..."])
    return text


def parse_ranges(text: str) -> set[int]:
    """The numbers of a list of ranges; raises ValueError for another text."""
    numbers: set[int] = set()
    for word in filter(None, text.strip().split(",")):
        first, _, last = word.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def numa_nodes(cpus: Iterable[int], folder: Path = _NODES) -> tuple[int, ...]:
    """The NUMA nodes with any of these CPUs, ascending; empty where the kernel shows none in `folder`."""
    mine = set(cpus)
    found = []
    for path in folder.glob("node[0-9]*/cpulist"):
        if mine & parse_ranges(path.read_text()):
            found.append(int(path.parent.name.removeprefix("node")))
    return tuple(sorted(found))
