# SPDX-License-Identifier: Apache-2.0
"""Where a replica keeps its compiled programs, and what was found when they were tuned: on storage of its own node."""

from __future__ import annotations

import atexit
import fcntl
import glob
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.config import ConfigError
from aiperf_mpi.training.compile import use_compilation_cache


@dataclass(frozen=True)
class Cache:
    """The folder of a replica's compiled programs; `ours` where it was made for this run alone.

    `lock` is a descriptor of our folder that holds a lock of it for as long as this process lives, however it ends.
    """

    folder: Path
    ours: bool
    lock: int | None = None

    def close(self) -> None:
        """Remove the folder if it is ours; what a thread still compiles is lost."""
        if self.ours:
            shutil.rmtree(self.folder, ignore_errors=True)


def open_cache(configured: str, replica: int) -> Cache:
    """The cache of a replica, in use from now on: a folder of its own in `configured`, which later runs find again;
    else one in what JAX's own variable names; else a fresh one in the node's folder for temporary files (`TMPDIR`),
    where what aborted jobs have left is removed first.

    Of the processes of a replica only the first one writes (JAX sees to that), and replicas share no folder: two
    processes that write the same program at once would spoil it. Raises ConfigError where it cannot be made.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    where = configured or given or tempfile.gettempdir()
    try:
        if configured:
            cache = Cache(Path(configured).expanduser() / f"replica-{replica}", ours=False)
        elif given:
            cache = Cache(Path(given) / f"replica-{replica}", ours=False)
        else:
            remove_orphans(Path(where))
            cache = fresh(Path(where))
        use_compilation_cache(cache.folder)
    except OSError as error:
        raise ConfigError(f"parallel.cache: {where}: {error.strerror or error}; name a "
                          "folder on the node that can be written") from error  # fmt: skip
    # Also where the run is refused. A job that is aborted leaves its folder to the next one.
    atexit.register(cache.close)
    return cache


def fresh(parent: Path) -> Cache:
    """A new folder in `parent`, locked before anybody can take it for an orphan. Raises OSError if it cannot be."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix(), dir=parent))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            # Another one removes it, who looked between its making and its lock.
            os.close(descriptor)
            continue
        except OSError:
            # No locks on this file system: then nobody can lock it to remove it either.
            return Cache(folder, ours=True, lock=descriptor)
        if folder.exists():
            return Cache(folder, ours=True, lock=descriptor)
        os.close(descriptor)


def remove_orphans(parent: Path) -> None:
    """Remove the folders of programs in `parent` whose process is gone: killed, or aborted with its job.

    Only those of this user and this host: on a file system that several hosts share, another host's locks may be
    unseen. A folder that is locked has a living owner, and where there are no locks nothing is removed.
    """
    for folder in parent.glob(f"{glob.escape(prefix())}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            # Its owner lives, or another process removes it.
            continue
        finally:
            os.close(descriptor)


def prefix() -> str:
    """How the names of this host's folders begin."""
    return f"aiperf_mpi-programs-{socket.gethostname()}-"
