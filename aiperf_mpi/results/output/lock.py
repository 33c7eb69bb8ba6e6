# SPDX-License-Identifier: Apache-2.0
"""The lock of an output folder: one process writes there at a time, on whatever host it runs.

The file LOCK names the process that holds the folder: the writer of a run. It is linked into place, which is
atomic on network file systems, and its owner writes a new heartbeat every BEAT_SECONDS. An owner that is dead
loses the lock: on the same host at once, as its process does not exist any more; on another host after
SILENT_SECONDS without a heartbeat, by the clock of the process that waits.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import because, message
from aiperf_mpi.files import FileError, read_bytes
from aiperf_mpi.printable import plain

#: Name of the lock in an output folder; whatever reads a result ignores it.
LOCK = "run.lock"

#: Seconds between two heartbeats, and without one after which an owner on another host loses the lock.
BEAT_SECONDS, SILENT_SECONDS = 10.0, 60.0

#: Seconds that a process waits for an owner on its host, which may be about to end, and between two looks.
PATIENCE_SECONDS, _LOOK_SECONDS = 5.0, 0.2

#: Bytes of the file, so that a heartbeat is one write of a fixed length.
_BYTES = 1024

#: Errors of a file system that has no hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a folder.

    Attributes:
        token: of this lock alone.
        host, boot, space: its host, the start of the host's system, and its name space of processes.
        pid, started: its number, and the moment of its start in ticks of the system.
        since: when it took the lock (UTC, ISO 8601).
        beats: number of its heartbeats.
    """

    token: str
    host: str
    boot: str
    space: str
    pid: int
    started: int
    since: str
    beats: int = 0

    def __str__(self) -> str:
        """Return process, host and time for a message."""
        return plain(f"process {self.pid} on host {self.host}, since {self.since}")

    @property
    def here(self) -> bool:
        """Whether its process would be seen from here: on this host, in this name space."""
        host, boot, space = _place()
        return (self.host, self.boot, self.space) == (host, boot, space)

    @property
    def dead(self) -> bool:
        """Whether its process is known to have ended: it is not there, or the host has started again."""
        host, boot, _ = _place()
        if self.host == host and boot and self.boot and self.boot != boot:
            return True
        return self.here and started(self.pid) != self.started


@cache
def _place() -> tuple[str, str, str]:
    """Return this host, the start of its system, and this process's name space; "" for what is unknown."""
    boot = space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return socket.gethostname(), boot, space


def started(pid: int) -> int:
    """Return when a process of this host started, in ticks of its system; -1 if it does not run any more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = text.rpartition(")")[2].split()
        return -1 if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return -1


def read_holder(folder: Path) -> Holder | None:
    """Return who holds a folder; None where no lock can be read. Never waits."""
    return _holder_in(folder / LOCK)


def _holder_in(path: Path) -> Holder | None:
    """Return the holder that a file names; None where it names none."""
    try:
        return Holder(**json.loads(read_bytes(path, _BYTES)))
    except (FileError, ValueError, TypeError, RecursionError):
        return None


class Lock:
    """The lock of a folder, held by this process until `release`. Make one with `acquire`.

    A thread writes the heartbeats, as the process may be busy for minutes with a large result.
    """

    def __init__(self, folder: Path, holder: Holder, descriptor: int) -> None:
        self._folder, self._holder, self._file = folder, holder, descriptor
        self._over, self._look_at = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def lost(self) -> str:
        """Return why the folder is not this process's any more, or "" if it is; looks once a heartbeat."""
        if time.monotonic() < self._look_at:
            return ""
        self._look_at = time.monotonic() + BEAT_SECONDS
        other = read_holder(self._folder)
        if other is None or other.token == self._holder.token:
            return ""
        return message(
            "--output", self._folder, f"{other} has taken the folder: this process was silent", _WAIT
        )

    def release(self) -> None:
        """End the heartbeats, and remove the lock if it is still this process's."""
        self._over.set()
        self._thread.join()
        os.close(self._file)
        holder = read_holder(self._folder)
        if holder is not None and holder.token == self._holder.token:
            with suppress(OSError):
                os.unlink(self._folder / LOCK)

    def _beat(self) -> None:
        """Write heartbeats until `release`; the thread's function."""
        while not self._over.wait(BEAT_SECONDS):
            self._holder = replace(self._holder, beats=self._holder.beats + 1)
            # A file system that fails shows in the journal, which drains the run.
            with suppress(OSError):
                os.pwrite(self._file, _text(self._holder), 0)
                os.fsync(self._file)


_WAIT = "wait until it has ended, or end it"


def acquire(
    folder: Path,
    setting: str = "--output",
    *,
    patience: float = PATIENCE_SECONDS,
    silent: float = SILENT_SECONDS,
) -> Lock:
    """Take the lock of a folder that exists, from a dead owner too.

    Arguments:
        setting: the option that named the folder, for messages.
        patience: seconds to wait for an owner on this host.
        silent: seconds without a heartbeat after which an owner on another host is dead.

    Raises ConfigError that names the owner, if it lives, or the system's reason where no lock can be made.
    """
    host, boot, space = _place()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    mine = Holder(uuid.uuid4().hex, host, boot, space, os.getpid(), started(os.getpid()), now)
    try:
        while True:
            if (descriptor := _link(folder, mine)) is not None:
                return Lock(folder, mine, descriptor)
            _wait_for_death(folder, setting, patience, silent)
    except OSError as error:
        why = because(error, folder / LOCK, "name another folder", created=True)
        raise ConfigError(message(setting, folder / LOCK, *why)) from error


def _link(folder: Path, mine: Holder) -> int | None:
    """Link a lock of this process into place; return its open file, None where there is a lock already."""
    own, lock = folder / f".{LOCK}.{mine.token}", folder / LOCK
    descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    linked = False
    try:
        os.pwrite(descriptor, _text(mine), 0)
        os.fsync(descriptor)
        try:
            os.link(own, lock)
        except OSError as error:
            # Without hard links the two steps are not one: only the first run in a new folder is safe.
            if error.errno in _NO_LINKS:
                if linked := not os.path.lexists(lock):
                    os.rename(own, lock)
            elif error.errno != errno.EEXIST:
                raise
        # A lock that exists may be this one, as the answer of a file server may be lost: the number of links
        # tells.
        linked = linked or os.fstat(descriptor).st_nlink == 2
    finally:
        with suppress(FileNotFoundError):
            os.unlink(own)
        if not linked:
            os.close(descriptor)
    return descriptor if linked else None


def _wait_for_death(folder: Path, setting: str, patience: float, silent: float) -> None:
    """Wait until a lock is gone or its owner is known to be dead, and remove it. Raises ConfigError where the
    owner lives."""
    first, begun = read_holder(folder), time.monotonic()
    holder, seen, changed = first, first, begun
    while True:
        now = time.monotonic()
        if not os.path.lexists(folder / LOCK):
            return
        if holder is not None and holder.dead:
            break
        if holder != seen:
            seen, changed = holder, now
            if holder is not None:
                raise ConfigError(_held(folder, setting, holder))
        if holder is not None and holder.here and now - begun > patience:
            raise ConfigError(_held(folder, setting, holder))
        if now - changed > silent:
            break
        time.sleep(_LOOK_SECONDS)
        holder = read_holder(folder)
    _remove(folder, holder)


def _held(folder: Path, setting: str, holder: Holder) -> str:
    return message(setting, folder, f"{holder} works in this folder", _WAIT)


def _remove(folder: Path, dead: Holder | None) -> None:
    """Remove the lock of a dead owner. A lock that another process has taken meanwhile is put back."""
    aside = folder / f".{LOCK}.{uuid.uuid4().hex}"
    try:
        os.rename(folder / LOCK, aside)
    except FileNotFoundError:
        return
    found = _holder_in(aside)
    if found is not None and (dead is None or found.token != dead.token):
        with suppress(FileExistsError):
            os.link(aside, folder / LOCK)
    os.unlink(aside)


def _text(holder: Holder) -> bytes:
    """Return a holder as the bytes of its file, always as many."""
    return json.dumps(asdict(holder)).encode().ljust(_BYTES - 1)[: _BYTES - 1] + b"\n"
