# SPDX-License-Identifier: Apache-2.0
"""Copy the shards of a packed set to a folder of this host, and check their hashes, by threads.

The copy is `FOLDER/<first 16 digits of the content's hash>`. A shard is written under a temporary name,
hashed meanwhile, synced and renamed: what has the name of a shard is whole, and a copy that was broken off
is finished. The temporary file is locked: of two runs on a host, one copies a shard, and the other uses it.
The system releases the lock of a run that was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.paths import creatable_folder, message, reading
from aiperf_mpi.data.manifest import FILE, Manifest, Shard
from aiperf_mpi.data.packed import manifest_of, needed_shards
from aiperf_mpi.files import FileError, open_regular, read_text
from aiperf_mpi.machine.filesystems import file_systems
from aiperf_mpi.machine.limits import available_bytes

SETTING, SOURCE = "data.stage", "data.path"

REMEDY = "name a folder of each node that this user may write into, or leave --stage out"

_AGAIN = "copy it again, or pack the set again"

#: Digits of the content's hash in the name of a copy, and the end of a temporary file's name.
_DIGITS, _PART = 16, ".part"

#: Most threads, and bytes that each reads at a time: all buffers together have 64 MiB.
_MOST_THREADS, _CHUNK = 16, 4 << 20

#: Bytes after which a copy is synced: a process that waits for a disk cannot be ended meanwhile.
_SYNC_BYTES = 128 << 20

#: Seconds between two looks at a shard that another run copies.
_BUSY_SECONDS = 0.2

#: Bytes that stay free for the manifest and for other programs.
_SPARE_BYTES = 1 << 20

#: File systems whose files take memory.
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class Staging:
    """A copy that one rank of a node makes, or a check of hashes where `target` is None.

    Attributes:
        source: folder of the packed set.
        target: folder of the copy.
        manifest: of the set.
        shards: that are copied or checked, in this order.
    """

    source: Path
    target: Path | None
    manifest: Manifest
    shards: tuple[Shard, ...]

    @property
    def total(self) -> int:
        """Bytes of the shards."""
        return sum(shard.bytes for shard in self.shards)

    def lacking(self) -> list[Shard]:
        """Return the shards of which the copy has no file of the right size."""
        folder = self.target
        return [one for one in self.shards if folder and not _has_size(folder / one.file, one.bytes)]


def copy_folder(stage: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Return the folder below `stage` that has the copy of a packed set."""
    return Path(stage) / manifest.sha256[:_DIGITS]


def plan(config: Config, node: int = 0, nodes: int = 1) -> Staging:
    """Return what a node copies, or checks where `data.stage` is empty. Raises ConfigError."""
    source, manifest = manifest_of(config)
    shards = needed_shards(manifest, config.data.train_images, config.data.val_images)
    if not config.data.stage:
        return Staging(source, None, manifest, part_of(shards, node, nodes))
    return Staging(source, copy_folder(config.data.stage, manifest), manifest, order_of(shards, node, nodes))


def order_of(shards: Sequence[Shard], node: int, nodes: int) -> tuple[Shard, ...]:
    """Return all shards, from the place where this node begins: nodes do not read one file at one time."""
    first = node * len(shards) // nodes
    return (*shards[first:], *shards[:first])


def part_of(shards: Sequence[Shard], node: int, nodes: int) -> tuple[Shard, ...]:
    """Return the shards whose hashes this node checks: each shard is checked by one node."""
    return tuple(shards[node::nodes])


# -- before ----------------------------------------------------------------------------------------


def check_room(staging: Staging) -> None:
    """Check that the copy can be made: the folder, its space, the limits. Raises ConfigError.

    Nothing is made. Temporary files of a run that was killed are removed.
    """
    folder, lacking = staging.target, staging.lacking()
    if folder is None or not lacking:
        return
    _sweep(folder)
    with reading(SETTING, folder, REMEDY):
        system = os.statvfs(next(place for place in (folder, *folder.parents) if os.path.exists(place)))
    if system.f_flag & os.ST_RDONLY:
        raise ConfigError(message(SETTING, folder, "the file system is read-only", REMEDY))
    creatable_folder(SETTING, folder, REMEDY)
    # What another run has written of its shards until now is room for the same shards here.
    free = system.f_bavail * system.f_frsize + _held(folder)
    need = sum(shard.bytes for shard in lacking) + _SPARE_BYTES
    remedy = "make room, name another folder, or leave --stage out"
    if system.f_blocks and need > free:
        raise ConfigError(message(SETTING, folder, _short(need, free), remedy))
    if _in_memory(folder) and need > (free := available_bytes()):
        reason = f"the folder is in memory, and {_short(need, free)}"
        raise ConfigError(message(SETTING, folder, reason, remedy))
    largest, limit = max(shard.bytes for shard in lacking), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit not in (resource.RLIM_INFINITY, -1) and largest > limit:
        reason = f"a shard has {largest} bytes, but this process may write {limit} into a file (ulimit -f)"
        raise ConfigError(message(SETTING, folder, reason, "raise the limit: ulimit -f unlimited"))


def _short(need: int, free: int) -> str:
    """Return in words how much the copy needs and how much is free."""
    return f"the copy needs {need} bytes ({need / 1e9:.2f} GB), but {free} ({free / 1e9:.2f} GB) are free"


def _in_memory(folder: Path) -> bool:
    """Whether files in this folder take memory, as far as the system tells."""
    told = file_systems({"stage": str(folder)})["stage"]
    return isinstance(told, dict) and told["type"] in _IN_MEMORY


def _has_size(path: Path, size: int) -> bool:
    """Whether there is a regular file of this size."""
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size == size
    except FileError:
        return False


def _sweep(folder: Path) -> None:
    """Remove the temporary files that no run writes any more."""
    for path in folder.glob(f".*{_PART}"):
        with suppress(OSError), claimed(path) as descriptor:
            if descriptor is not None:
                os.unlink(path)


def _held(folder: Path) -> int:
    """Return the bytes of the temporary files that other runs write now."""
    sizes = 0
    for path in folder.glob(f".*{_PART}"):
        with suppress(OSError):
            sizes += path.stat().st_blocks * 512
    return sizes


@contextmanager
def claimed(path: Path) -> Iterator[int | None]:
    """Open and lock a temporary file for writing; None where another run has it, or has just renamed it.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.stat(path), os.fstat(descriptor))
        except (BlockingIOError, FileNotFoundError):
            mine = False
        yield descriptor if mine else None
    finally:
        os.close(descriptor)


# -- the work --------------------------------------------------------------------------------------


class Stopped(BaseException):
    """The work was told to stop. What turns errors into refusals lets it pass."""


class Work:
    """Threads that copy the shards of a node, or check their hashes; the caller looks until it has `ended`.

    Attributes:
        staging: what is done.
        copied: bytes that were written, as the result records them.
        done: bytes of the work that are done: copied, or found whole.
    """

    def __init__(self, staging: Staging, threads: int) -> None:
        self.staging = staging
        self.copied = self.done = 0
        self._error: BaseException | None = None
        self._left = deque(staging.shards)
        self._lock, self._stop = threading.Lock(), threading.Event()
        count = max(1, min(threads, _MOST_THREADS, len(staging.shards)))
        self._threads = [
            threading.Thread(target=self._run, name=f"staging-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def ended(self) -> bool:
        """Whether all threads have ended."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Have the threads end soon, after the bytes that they have in hand."""
        self._stop.set()

    def conclude(self) -> None:
        """Write the manifest of a copy that is whole. Raises the first error of a thread."""
        if self._error is not None:
            raise self._error
        if self._stop.is_set():
            raise Stopped
        if self.staging.target is not None:
            _write_manifest(self.staging.target, self.staging.manifest)

    def _run(self) -> None:
        """Take shards until none is left."""
        try:
            while not self._stop.is_set():
                with self._lock:
                    if not self._left:
                        return
                    shard = self._left.popleft()
                if not self._do(shard):
                    with self._lock:
                        self._left.append(shard)
                    self._stop.wait(_BUSY_SECONDS)
        except Stopped:
            return
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            self._stop.set()

    def _do(self, shard: Shard) -> bool:
        """Copy or check a shard; return False where another run copies it now. Raises ConfigError."""
        source, target = self.staging.source / shard.file, self.staging.target
        if target is None:
            _compare(source, shard, self._hash(source)[0])
            return True
        if self._is_whole(target / shard.file, shard):
            return True
        part = target / f".{shard.file}{_PART}"
        with reading(SETTING, part, REMEDY):
            os.makedirs(target, exist_ok=True)
            with claimed(part) as descriptor:
                if descriptor is not None:
                    self._replace(source, target / shard.file, shard, part, descriptor)
                return descriptor is not None

    def _replace(self, source: Path, final: Path, shard: Shard, part: Path, descriptor: int) -> None:
        """Copy a shard into its locked temporary file, and rename that. Raises ConfigError or OSError."""
        renamed = False
        try:
            # Another run may have copied the shard just before.
            if not self._is_whole(final, shard):
                self._copy(source, shard, descriptor)
                os.rename(part, final)
                renamed = True
        finally:
            if not renamed:
                with suppress(OSError):
                    os.unlink(part)

    def _is_whole(self, path: Path, shard: Shard) -> bool:
        """Whether the copy of a shard is there with its content."""
        if not _has_size(path, shard.bytes):
            return False
        with suppress(ConfigError):
            digest, size = self._hash(path)
            if digest == shard.sha256:
                return True
            self._count(-size)
        return False

    def _hash(self, path: Path) -> tuple[str, int]:
        """Return the SHA-256 and the size of a file. Raises ConfigError or Stopped."""
        digest, size = hashlib.sha256(), 0
        for part in self._parts(path):
            digest.update(part)
            size += len(part)
            self._count(len(part))
        return digest.hexdigest(), size

    def _copy(self, source: Path, shard: Shard, descriptor: int) -> None:
        """Write the content of a shard into an open file. Raises ConfigError, OSError or Stopped."""
        digest, size = hashlib.sha256(), 0
        os.ftruncate(descriptor, 0)
        for part in self._parts(source):
            digest.update(part)
            _write(descriptor, part)
            self._count(len(part), len(part))
            if (size + len(part)) // _SYNC_BYTES > size // _SYNC_BYTES:
                os.fdatasync(descriptor)
            size += len(part)
        _compare(source, shard, digest.hexdigest())
        os.fsync(descriptor)

    def _parts(self, path: Path) -> Iterator[memoryview]:
        """Yield the content of a file in parts, each of which is valid until the next.

        Raises ConfigError where it cannot be read, and Stopped.
        """
        buffer = memoryview(bytearray(_CHUNK))
        with reading(SOURCE, path, _AGAIN):
            file = open_regular(path)
        with file:
            while not self._stop.is_set():
                with reading(SOURCE, path, _AGAIN):
                    count = file.readinto(buffer)
                if not count:
                    return
                yield buffer[:count]
        raise Stopped

    def _count(self, done: int, copied: int = 0) -> None:
        """Add to the counts."""
        with self._lock:
            self.done += done
            self.copied += copied


def _compare(path: Path, shard: Shard, digest: str) -> None:
    """Raise ConfigError where a shard of the source has another hash than the manifest says."""
    if digest != shard.sha256:
        hashes = f"SHA-256 {digest[:16]}..., not {shard.sha256[:16]}..."
        reason = f"has another content than the manifest says ({hashes})"
        raise ConfigError(message(SOURCE, path, reason, _AGAIN))


def _write(descriptor: int, part: memoryview) -> None:
    """Write all bytes of `part`."""
    while part:
        part = part[os.write(descriptor, part) :]


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a whole copy, unless it is there. Raises ConfigError."""
    path, text = folder / FILE, manifest.to_json()
    with suppress(FileError):
        if read_text(path, len(text) + 1) == text:
            return
    part = folder / f".{FILE}{_PART}"
    written = False
    while not written:
        with reading(SETTING, part, REMEDY), claimed(part) as descriptor:
            if descriptor is not None:
                os.ftruncate(descriptor, 0)
                _write(descriptor, memoryview(text.encode()))
                os.fsync(descriptor)
                os.rename(part, path)
                written = True
        if not written:
            time.sleep(_BUSY_SECONDS)
