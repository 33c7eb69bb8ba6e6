# SPDX-License-Identifier: Apache-2.0
"""Folders for compiled programs that end with their process, or, where that was killed, at the next start of
another.

A job that is aborted runs no cleaning up. What tells a living owner is a lock on its folder, which the system
gives back whenever a process ends; numbers of processes come back, and differ between containers.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import socket
import tempfile
from pathlib import Path


def fresh(parent: Path) -> tuple[Path, int]:
    """A new folder in `parent`, and a descriptor of it that locks it for as long as this process lives,
    however that ends; locked before anybody can take it for an orphan. Raises OSError if it cannot be
    made."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix(), dir=parent))
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            # Another one has removed it, who looked between its making and its lock; or is about to, below.
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        except OSError:
            # No locks on this file system: then nobody can lock it to remove it either.
            return folder, descriptor
        if folder.exists():
            return folder, descriptor
        os.close(descriptor)


def remove_orphans(parent: Path) -> None:
    """Remove the folders of `fresh` in `parent` whose process is gone: killed, or aborted with its job.

    Only those of this user and this host: on a file system that several hosts share, another host's locks may
    be unseen. A folder that is locked has a living owner, and where there are no locks nothing is removed.
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
