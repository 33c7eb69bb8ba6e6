# SPDX-License-Identifier: Apache-2.0
"""What each form of a source returns where it is found: the members of both splits."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from aiperf_mpi.packing.sources.pictures import Found

#: The argument of the command that messages name.
SETTING = "SRC"

#: Threads that look at folders and archives at the same time: a file server answers each after a while.
THREADS = 8


@dataclass(frozen=True, slots=True)
class Form:
    """A source in one form.

    Attributes:
        name: the form.
        splits: what was found for `train` and for `val`.
        description: what the manifest says of it.
        notes: what a person should know.
        files: the archives, whose MD5 may be computed.
    """

    name: str
    splits: Mapping[str, Found]
    description: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def pool() -> ThreadPoolExecutor:
    """Return threads that wait for a file server."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="source")
