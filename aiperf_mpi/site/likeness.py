# SPDX-License-Identifier: Apache-2.0
"""Compare the software and the devices of all ranks: a run needs them alike everywhere.

Ranks exchange records and rows by fixed layouts, and the trainers of a replica compile one program. Another
version of a library on one host can end a run hours later, or falsify the rate of a replica.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

from aiperf_mpi.machine.inventory import packages
from aiperf_mpi.machine.source import files_sha256
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.rank_resources import ranks_in_words
from aiperf_mpi.probe import NotKnown, probe

#: Distributions that must be alike.
LIKE = ("aiperf_mpi", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "h5py", "mpi4py")

#: What is told of equal ranks.
_TOLD = ("python", "aiperf_mpi", "jax", "numpy", "mpi4py")

_REMEDY = (
    "start all ranks with the same environment, on a file system of all hosts; "
    "look at PATH, PYTHONPATH and the modules that each host loads"
)

#: Seconds to read the files of the package.
_HASH_SECONDS = 5.0

#: In place of a value that a rank cannot tell.
UNKNOWN = "not known"

#: Most ways in which a quantity may differ that are told.
_MOST = 3


def identity(mpi: str = "") -> dict[str, str]:
    """Return the versions of what runs in this process; `mpi` is the version text of the MPI library.

    The hash is UNKNOWN where it cannot be taken.
    """
    versions = packages()
    known = {name: versions.get(name, "not installed") for name in LIKE}
    found = probe("hash", files_sha256, seconds=_HASH_SECONDS)
    files = UNKNOWN if isinstance(found, NotKnown) else str(found)
    return {"python": platform.python_version(), **known, "MPI library": mpi, "hash of its files": files}


def judge(
    kinds: Sequence[tuple[Mapping[str, str], Sequence[int]]], subject: str = "versions"
) -> tuple[Finding, ...]:
    """Return whether all ranks are alike: `kinds` are the different identities, each with its ranks."""
    if len(kinds) == 1:
        values, _ = kinds[0]
        told = ", ".join(f"{name} {values[name]}" for name in _TOLD if values.get(name))
        return (Finding("ok", subject, told or ", ".join(f"{k} {v}" for k, v in values.items())),)
    names = list(dict.fromkeys(name for values, _ in kinds for name in values))
    found = []
    for name in names:
        ranks: dict[str, list[int]] = {}
        for values, own in kinds:
            ranks.setdefault(values.get(name, ""), []).extend(own)
        # What a rank cannot tell, for example on a slow file system, is not a difference.
        if len(set(ranks) - {UNKNOWN}) > 1:
            found.append(Finding("fail", subject, f"{name} differs: {_ways(ranks)}", _REMEDY))
    return tuple(found) or judge(kinds[:1], subject)


def _ways(ranks: Mapping[str, Sequence[int]]) -> str:
    """Return the different values with their ranks, the most frequent first."""
    ordered = sorted(ranks.items(), key=lambda item: -len(item[1]))
    ways = [f"{value or 'unknown'} on {ranks_in_words(own, 24)}" for value, own in ordered[:_MOST]]
    more = len(ordered) - _MOST
    return ", ".join(ways) + (f", and {more} more" if more > 0 else "")
