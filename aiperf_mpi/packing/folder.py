# SPDX-License-Identifier: Apache-2.0
"""The folder of a packed set while it is made: who packs into it, by which plan, and what is finished.

In `.packing` are `lock`, `plan.json`, the shards that are being written, and a record of each that is
finished. The manifest is written last, and then `.packing` is removed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiperf_mpi import hdf5
from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import because, creatable_folder, existing_folder, message
from aiperf_mpi.data.manifest import FILE, Manifest, Rejected, Shard, read_manifest
from aiperf_mpi.files import FileError, open_regular, read_bytes
from aiperf_mpi.packing.plan import Plan, Task
from aiperf_mpi.packing.shard import hash_of
from aiperf_mpi.printable import named, plain

SETTING = "DST"

WORK, LOCK, PLAN = ".packing", "lock", "plan.json"

#: Largest lock, plan and record that are read, in bytes. A record names each rejected picture.
_MOST_BYTES = 64 << 20

#: How file systems say that they have no locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

_NEW = "name a new folder"
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a finished shard.

    Attributes:
        shard: as in the manifest; None where every picture of it was rejected.
        rejected: pictures that the shard lacks.
        pixels: number of fitted pixels that were measured, none of a validation picture.
        sums, squares: sums over these pixels of each colour's values, and of their squares.
    """

    shard: Shard | None
    rejected: tuple[Rejected, ...]
    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system in the block into a ConfigError that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        remedy = "make it writable, or name another folder"
        reason, better = because(error, path, remedy, created=True)
        again = "" if error.errno == errno.EROFS else "; then run the same command again: it goes on"
        raise ConfigError(message(SETTING, path, reason, f"{better}{again}")) from error


class Folder:
    """A folder DST that is packed into.

    Attributes:
        path: its absolute path.
        work: the folder for what is not finished.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.work = path, path / WORK
        self._created = False

    # -- before the first shard ----------------------------------------------------------------------

    def claim(self) -> Callable[[], None]:
        """Create the folder, and lock it for this process; return the function that releases it.

        Raises ConfigError where it has other content or another process packs into it.
        """
        if not os.path.lexists(self.path):
            creatable_folder(SETTING, self.path, _NEW)
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._created = True
        existing_folder(SETTING, self.path, _NEW)
        names = set(os.listdir(self.path))
        if FILE in names and WORK not in names:
            return lambda: None
        if names and WORK not in names:
            reason = "is neither empty nor a packed set"
            raise ConfigError(message(SETTING, self.path, reason, _NEW))
        with writing(self.work):
            self.work.mkdir(exist_ok=True)
            return _lock(self.work / LOCK)

    def finished(self) -> Manifest | None:
        """Return the manifest of a set that is packed already. Raises ConfigError where it is damaged."""
        if not os.path.lexists(self.path / FILE):
            return None
        try:
            manifest = read_manifest(self.path)
        except FileError as error:
            raise ConfigError(f"{SETTING}: {error}") from None
        for shard in (shard for shards in manifest.splits.values() for shard in shards):
            path = self.path / shard.file
            size = path.stat().st_size if path.is_file() else -1
            if size != shard.bytes:
                reason = f"has {size} bytes instead of {shard.bytes}" if size >= 0 else "is missing"
                raise ConfigError(message(SETTING, path, reason, f"copy it again, or {_NEW}"))
        return manifest

    def check_plan(self, plan: Plan) -> None:
        """Write the plan, or compare it with that of an earlier packing. Raises ConfigError."""
        path = self.work / PLAN
        text = json.dumps(plan.to_dict(), indent=1, sort_keys=True) + "\n"
        if not os.path.lexists(path):
            with writing(path):
                hdf5.write(path, text.encode())
        try:
            before = json.loads(read_bytes(path, _MOST_BYTES))
            if not isinstance(before, dict):
                raise ValueError("it is not a plan")
        except ValueError as error:
            reason = f"cannot be read ({plain(str(error))[:200]})"
            raise ConfigError(message(SETTING, path, reason, f"remove {named(self.path)}")) from None
        if words := differences(before, json.loads(text)):
            reason = f"was begun with {words}"
            better = f"run it as it was begun, remove the folder to begin anew, or {_NEW}"
            raise ConfigError(message(SETTING, self.path, reason, better))

    def is_shared(self, plan: Plan) -> None:
        """Raise ConfigError where this host does not see the plan that another host has written."""
        path = self.work / PLAN
        try:
            if json.loads(read_bytes(path, _MOST_BYTES)) == json.loads(json.dumps(plan.to_dict())):
                return
            reason = "has the plan of another packing"
        except ValueError as error:
            reason = f"does not show what rank 0 has written ({plain(str(error))[:200]})"
        raise ConfigError(message(SETTING, path, reason, "name a folder that all hosts share"))

    def leave(self) -> None:
        """Remove what `claim` has created for a packing that is refused, as far as nothing else is there."""
        with suppress(OSError):
            if not os.path.lexists(self.work / PLAN):
                (self.work / LOCK).unlink(missing_ok=True)
                self.work.rmdir()
                if self._created:
                    self.path.rmdir()

    # -- shards --------------------------------------------------------------------------------------

    def temporary(self, task: Task) -> Path:
        """Return where the shard is while it is written."""
        return self.work / task.file

    def record_of(self, task: Task) -> Record | None:
        """Return the record of a shard if it is finished and as it was written."""
        try:
            record = _record(json.loads(read_bytes(self._record_path(task), _MOST_BYTES)))
            if record.shard is None:
                return record
            with open_regular(self.path / task.file) as file:
                same = hash_of(file.fileno()) == (record.shard.sha256, record.shard.bytes)
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return None
        return record if same else None

    def keep(self, task: Task, record: Record) -> None:
        """Move a shard that was written and synced to its name, and write its record. Raises OSError."""
        final = self.path / task.file
        if record.shard is None:
            final.unlink(missing_ok=True)
            self.temporary(task).unlink(missing_ok=True)
        else:
            os.replace(self.temporary(task), final)
        sync_folder(self.path)
        hdf5.write(self._record_path(task), json.dumps(asdict(record)).encode())

    def conclude(self, manifest: Manifest) -> None:
        """Write the manifest, and remove all that only the packing needs. Raises ConfigError."""
        path = self.path / FILE
        with writing(path):
            # A kill leaves the unfinished file where it is removed by the next packing.
            hdf5.write(self.work / FILE, manifest.to_json().encode())
            os.replace(self.work / FILE, path)
            sync_folder(self.path)
        self.remove_work()

    def remove_work(self) -> None:
        """Remove what only the packing needs, as far as it can be removed."""
        shutil.rmtree(self.work, ignore_errors=True)

    def list_rejected(self, rejected: Sequence[Rejected]) -> Path:
        """Write the list of all rejected pictures, a line each; return its path. Raises ConfigError."""
        path = self.work / "rejected.txt"
        with writing(path):
            lines = (f"{one.split}\t{one.name}\t{one.reason}\n" for one in rejected)
            hdf5.write(path, "".join(lines).encode())
        return path

    def _record_path(self, task: Task) -> Path:
        return self.work / f"{task.file}.json"


def sync_folder(path: Path) -> None:
    """Make the names in a folder safe against a loss of power. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words what differs between two plans: `side 256, now 128`, or ""."""
    words = {
        "listing": "another list of pictures or classes",
        "pictures": "another number of pictures",
        "shard_images": "shard-images",
        "standin": "another mark by a file STANDIN",
    }
    found = []
    for key in sorted(set(before) | set(now), key=lambda key: (key == "listing", key)):
        one, other = before.get(key), now.get(key)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            changed = [name for name in sorted(set(one) | set(other)) if one.get(name) != other.get(name)]
            found += [f"{key} {name} {one.get(name)}, now {other.get(name)}" for name in changed]
        elif key in ("listing", "standin"):
            found.append(words[key])
        else:
            found.append(f"--{words.get(key, key)} {one}, now {other}")
    return plain("; ".join(found))


def _record(document: Any) -> Record:
    """Return the record of a document. Raises ValueError, KeyError, TypeError for another form."""
    shard = document["shard"]
    return Record(
        None if shard is None else Shard(**shard),
        tuple(Rejected(**one) for one in document["rejected"]),
        int(document["pixels"]),
        tuple(int(value) for value in document["sums"]),
        tuple(int(value) for value in document["squares"]),
    )


# -- the lock --------------------------------------------------------------------------------------


def _lock(path: Path) -> Callable[[], None]:
    """Lock a file for this process until it ends; return the function that releases it.

    Where the file system has no locks, the file itself is the lock. Raises ConfigError or OSError.
    """
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                return _lock_by_name(path)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise _taken(path.parent.parent, text, "") from None
        if _is_still(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _owner(), 0)
            return lambda: _close(descriptor)
        # The process that had it has removed it meanwhile.
        os.close(descriptor)
    raise OSError(errno.EAGAIN, "the lock changes all the time", str(path))


def _lock_by_name(path: Path) -> Callable[[], None]:
    """Create a file next to the lock that only one process can create. Raises ConfigError or OSError."""
    owner = path.with_name("owner")
    for _ in range(_ATTEMPTS):
        try:
            descriptor = os.open(owner, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            text = owner.read_bytes() if owner.is_file() else b""
            if not _has_ended(text):
                remedy = f"; if that process has ended, remove {named(owner)}"
                raise _taken(path.parent.parent, text, remedy) from None
            owner.unlink(missing_ok=True)
            continue
        os.write(descriptor, _owner())
        os.fsync(descriptor)
        os.close(descriptor)
        return lambda: owner.unlink(missing_ok=True)
    raise OSError(errno.EAGAIN, "the lock changes all the time", str(owner))


def _owner() -> bytes:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode() + b"\n"


def _read_owner(text: bytes) -> tuple[str, int]:
    """Return host and process of a lock's content; "" and 0 where it has none."""
    try:
        document = json.loads(text)
        return str(document["host"]), int(document["pid"])
    except (ValueError, KeyError, TypeError):
        return "", 0


def _has_ended(text: bytes) -> bool:
    """Whether the process that wrote a lock is known to have ended: on this host, and not there."""
    host, pid = _read_owner(text)
    return host == socket.gethostname() and pid > 0 and not os.path.exists(f"/proc/{pid}")


def _taken(folder: Path, text: bytes, more: str) -> ConfigError:
    """Return the error of a folder into which another process packs."""
    host, pid = _read_owner(text)
    who = f"process {pid} on host {plain(host)}" if pid else "another process"
    return ConfigError(message(SETTING, folder, f"{who} packs into it", f"wait for its end, or {_NEW}{more}"))


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a name still belongs to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)
