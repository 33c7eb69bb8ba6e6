# SPDX-License-Identifier: Apache-2.0
"""The folder of a replica's compiled programs and of their tuning, on storage of its own node."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import because, message
from aiperf_mpi.config.programs import REMEDY, cache_place
from aiperf_mpi.parallel.replica.scratch import fresh, remove_orphans
from aiperf_mpi.training.steps.compile import release_compilation_cache, use_compilation_cache


@dataclass(frozen=True)
class Cache:
    """The folder of a replica's compiled programs.

    Attributes:
        ours: whether the folder was made for this run alone.
        lock: descriptor that locks such a folder (see `scratch.fresh`).
    """

    folder: Path
    lock: int | None = None
    ours: bool = False

    def close(self) -> None:
        """Remove the folder if it is ours; a program that a thread still compiles is lost.

        JAX would print a warning of that, which leads to nothing.
        """
        if self.ours:
            warnings.filterwarnings("ignore", message="Error (writing|reading) persistent compilation cache")
            release_compilation_cache()
            shutil.rmtree(self.folder, ignore_errors=True)


def open_cache(configured: str, replica: int) -> Cache:
    """Open the cache of a replica, and make JAX use it.

    It is a folder in `configured`, which later runs find again; else one in the folder that JAX's own
    variable names; else a new one in the node's folder for temporary files (`TMPDIR`), where the remains of
    aborted jobs are removed first.

    JAX lets only the first process of a replica write. Replicas share no folder, as two processes that write
    the same program at once would corrupt it. Raises ConfigError if the folder cannot be made.
    """
    setting, parent, given = cache_place(configured)
    try:
        if given:
            cache = Cache(parent / f"replica-{replica}")
        else:
            remove_orphans(parent)
            cache = Cache(*fresh(parent), ours=True)
        use_compilation_cache(cache.folder)
        if not os.access(cache.folder, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, "", str(cache.folder))
    except OSError as error:
        where = error.filename or parent
        why = because(error, where, REMEDY, created=True)
        raise ConfigError(message(setting, where, *why)) from error
    # Remove it after a refused run, too. The next job removes the folder of an aborted one.
    atexit.register(cache.close)
    return cache
