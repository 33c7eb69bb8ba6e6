# SPDX-License-Identifier: Apache-2.0
"""Try a folder: make, write, sync, rename and lock files in it, and remove them again."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from aiperf_mpi.config.paths import because, message
from aiperf_mpi.planning.finding import Finding, Level

#: Bytes that a try writes: more than a file system keeps beside its directory entry.
_BYTES = 256 * 2**10

#: Beginning of the names of the folders that a try makes.
PREFIX = ".aiperf_mpi-doctor-"

#: The capability to use files without their permission (CAP_DAC_OVERRIDE).
_OVERRIDE = 1 << 1

#: The folders that a try has made or claimed, and how each is given back.
undo: dict[Path, Callable[[], object]] = {}


def nearest(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def masked() -> bool:
    """Return whether the umask takes this user's own permissions, and no capability gives them back."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return False
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    mask, able = int(told.get("Umask", "0"), 8), int(told.get("CapEff", "0"), 16)
    return bool(mask & 0o700) and not able & _OVERRIDE


def make(parent: Path) -> Path:
    """Make a folder of its own in `parent` for a try, and return it. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    os.chmod(folder, 0o700)  # else a umask may keep its own user from removing what is in it
    undo[folder] = lambda: shutil.rmtree(folder, ignore_errors=True)
    return folder


def remove(folder: Path) -> None:
    """Give back a folder of a try; do nothing for any other one."""
    if (give_back := undo.pop(folder, None)) is not None:
        give_back()


def remove_all() -> None:
    """Give back the folders of tries that did not come to their end."""
    for folder in tuple(undo):
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
        return f"a file cannot be {step}: {because(error, folder)[0]}"
    finally:
        for path in (first, second):
            _drop(path)
    return ""


def try_lock(folder: Path) -> str:
    """Lock a folder as the caches of a run do; return "" or what went wrong."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        return f"it cannot be opened: {because(error, folder)[0]}"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return f"it cannot be locked: {because(error, folder)[0]}"
    finally:
        os.close(descriptor)
    return ""


def judge_scratch(setting: str, path: Path) -> tuple[Finding, ...]:
    """Try the folder for compiled programs, which `setting` names; a folder that is missing can be made."""

    def finding(level: Level, wrong: str, remedy: str) -> tuple[Finding, ...]:
        return (Finding(level, "scratch", message(setting, path, wrong), remedy),)

    another = "name a folder on the node that can be written (TMPDIR, or --set parallel.cache=FOLDER)"
    place = nearest(path)
    try:
        folder = make(place)
    except OSError as error:
        return finding("fail", f"cannot be written: {because(error, place)[0]}", another)
    try:
        if wrong := try_files(folder, "scratch"):
            return finding("fail", wrong, f"make room, or {another}")
        if wrong := try_lock(folder):
            lost = f"{wrong}; programs that killed jobs have left are not removed there"
            return finding(
                "warn", lost, "name a folder on a local disk (TMPDIR, or --set parallel.cache=FOLDER)"
            )
        free = shutil.disk_usage(folder).free
    finally:
        remove(folder)
    return (Finding("ok", "scratch", f"{setting}: {path}: written, renamed, locked; {size(free)} free"),)


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
