# SPDX-License-Identifier: Apache-2.0
"""Try a folder: make, write, sync, rename and lock files in it, and remove them again."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from aiperf_mpi.planning.finding import Finding

#: Bytes that a try writes: more than a file system keeps beside its directory entry.
_BYTES = 256 * 2**10

#: Beginning of the names of the folders that a try makes.
PREFIX = ".aiperf_mpi-doctor-"

#: The folders that are there now.
_made: set[Path] = set()


def nearest(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def make(parent: Path) -> Path:
    """Make a folder of its own in `parent` for a try, and return it. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    _made.add(folder)
    return folder


def remove(folder: Path) -> None:
    """Remove a folder that `make` made, with all in it."""
    if folder in _made:
        shutil.rmtree(folder, ignore_errors=True)
        _made.discard(folder)


def remove_all() -> None:
    """Remove what tries have left that did not come to their end."""
    for folder in tuple(_made):
        remove(folder)


def try_files(folder: Path, name: str) -> str:
    """Write, sync, rename, read and remove a file of this name in `folder`; return "" or what went wrong."""
    first, second = folder / f"{name}.tmp", folder / name
    content, step = os.urandom(1024) * (_BYTES // 1024), "written"
    try:
        with first.open("xb", buffering=0) as file:
            written = file.write(content)
            step = "synced to the disk"
            os.fsync(file.fileno())
        if written != len(content):
            return f"a file cannot be written: {written} of {len(content)} bytes fit"
        step = "renamed"
        os.replace(first, second)
        step = "read"
        if second.read_bytes() != content:
            return "a file that was written and renamed has another content when it is read"
        step = "removed"
        second.unlink()
    except OSError as error:
        return f"a file cannot be {step}: {error.strerror}"
    finally:
        for path in (first, second):
            _drop(path)
    return ""


def try_lock(folder: Path) -> str:
    """Lock a folder as the caches of a run do; return "" or what went wrong."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        return f"it cannot be opened: {error.strerror}"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return f"it cannot be locked: {error.strerror}"
    finally:
        os.close(descriptor)
    return ""


def judge_scratch(setting: str, path: Path) -> tuple[Finding, ...]:
    """Try the folder for compiled programs, which `setting` names; a folder that is missing can be made."""
    place, subject = nearest(path), "scratch"
    if not place.is_dir():
        return (Finding("fail", subject, f"{setting}: {place} is a file", "name a folder on the node"),)
    try:
        folder = make(place)
    except OSError as error:
        return (
            Finding(
                "fail",
                subject,
                f"{setting}: {place}: cannot be written: {error.strerror}",
                "name a folder on the node that can be written (TMPDIR, or --set parallel.cache=FOLDER)",
            ),
        )
    try:
        if wrong := try_files(folder, "scratch"):
            return (
                Finding("fail", subject, f"{setting}: {place}: {wrong}", "make room, or name another folder"),
            )
        if wrong := try_lock(folder):
            return (
                Finding(
                    "warn",
                    subject,
                    f"{setting}: {place}: {wrong}; remains of killed jobs are not removed there",
                    "name a folder on a local disk (TMPDIR, or --set parallel.cache=FOLDER)",
                ),
            )
        free = shutil.disk_usage(folder).free
    finally:
        remove(folder)
    return (Finding("ok", subject, f"{setting}: {path}: written, renamed, locked; {size(free)} free"),)


def size(count: float) -> str:
    """Return a number of bytes in words, with two digits that count: 3.9 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if count < 1024 or unit == "PiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}" if count < 10 and unit != "bytes" else f"{count:.0f} {unit}"


def _drop(path: Path) -> None:
    """Remove a file if it is there; the try is over, so an error changes nothing."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
