# SPDX-License-Identifier: Apache-2.0
"""Folders for compiled programs that are removed with their process, or else by the next run.

An aborted job removes nothing. A lock on the folder proves that its owner lives, as the system releases it
whenever a process ends. Process ids prove nothing: they are used again, and differ between containers.
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
    """Make a folder in `parent`; return it, and a descriptor that locks it until this process ends.

    It is locked before another process can take it for an orphan. Raises OSError if it cannot be made.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix(), dir=parent))
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            # Another process saw the folder before it was locked, and has removed it, or (below) is about to.
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        except OSError:
            # This file system has no locks, so no other process can lock the folder to remove it either.
            return folder, descriptor
        if folder.exists():
            return folder, descriptor
        os.close(descriptor)


def remove_orphans(parent: Path) -> None:
    """Remove the folders of `fresh` in `parent` that a killed process or an aborted job has left.

    Only folders of this user and this host are removed: on a file system that several hosts share, another
    host's locks may be invisible. A locked folder has a living owner, and without locks nothing is removed.
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
    """Return the beginning of the names of this host's folders."""
    return f"aiperf_mpi-programs-{socket.gethostname()}-"
