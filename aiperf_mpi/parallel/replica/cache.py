# SPDX-License-Identifier: Apache-2.0
"""Where a replica keeps its compiled programs, and what was found when they were tuned: on storage of its own
node."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.config import ConfigError
from aiperf_mpi.parallel.replica.scratch import fresh, remove_orphans
from aiperf_mpi.training.steps.compile import use_compilation_cache


@dataclass(frozen=True)
class Cache:
    """The folder of a replica's compiled programs; `ours` where it was made for this run alone, with its
    `lock`, see `scratch.fresh`."""

    folder: Path
    lock: int | None = None
    ours: bool = False

    def close(self) -> None:
        """Remove the folder if it is ours; what a thread still compiles is lost."""
        if self.ours:
            shutil.rmtree(self.folder, ignore_errors=True)


def open_cache(configured: str, replica: int) -> Cache:
    """The cache of a replica, in use from now on: a folder of its own in `configured`, which later runs find
    again; else one in what JAX's own variable names; else a fresh one in the node's folder for temporary
    files (`TMPDIR`), where what aborted jobs have left is removed first.

    Of the processes of a replica only the first one writes (JAX sees to that), and replicas share no folder:
    two processes that write the same program at once would spoil it. Raises ConfigError where it cannot be
    made.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    where = configured or given or tempfile.gettempdir()
    try:
        if configured:
            cache = Cache(Path(configured).expanduser() / f"replica-{replica}")
        elif given:
            cache = Cache(Path(given) / f"replica-{replica}")
        else:
            remove_orphans(Path(where))
            cache = Cache(*fresh(Path(where)), ours=True)
        use_compilation_cache(cache.folder)
    except OSError as error:
        raise ConfigError(
            f"parallel.cache: {where}: {error.strerror or error}; name a "
            "folder on the node that can be written"
        ) from error
    # Also where the run is refused. A job that is aborted leaves its folder to the next one.
    atexit.register(cache.close)
    return cache
