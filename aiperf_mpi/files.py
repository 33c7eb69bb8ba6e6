# SPDX-License-Identifier: Apache-2.0
"""Open and read files that someone names: never wait, and never read more than a bound.

Only regular files are read. Opening a FIFO waits for its other end, a device may never end, and a sparse file
is larger than the memory. What cannot be read is a FileError, whose text is one line.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

from aiperf_mpi.printable import named, plain

#: What a path may name in place of a regular file, by the test of its mode.
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

#: The reason in words for errors of the system that users meet.
_REASONS = {
    errno.ENOENT: "there is no such file",
    errno.EACCES: "may not be read by this user",
    errno.EPERM: "may not be read by this user",
    errno.ELOOP: "its symbolic links form a loop",
    errno.ENAMETOOLONG: "the name is longer than this file system allows",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EAGAIN: "has no content yet, and is not waited for",
    errno.ESTALE: "was removed on its file server",
}

#: How Python says that no thread can be started.
_NO_THREAD = "can't start new thread"

#: What to do where the system lacks something.
_LIMITS = "raise the limits of this shell (ulimit -a) or of the job"

_CHUNK = 1 << 20

#: A file has at most _MOST_HOLES + _MOST_PART x (bytes that are data) bytes.
_MOST_HOLES, _MOST_PART = 64 << 20, 16

#: Parts of a sparse file that are counted; what follows them counts as holes.
_MOST_PARTS = 100_000


class FileError(ValueError):
    """A file cannot be read; the text is `path: reason; what to do`, on one line.

    Attributes:
        path: the path as it may be printed.
        reason: the text without the path.
        errno: number of the system's error, 0 for another reason.
        folder: whether the path is a folder.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, number: int = 0, folder: bool = False):
        # The reason may have words of the file itself.
        self.path, self.reason, self.errno, self.folder = named(path), plain(reason), number, folder
        super().__init__(f"{self.path}: {reason}")


def system_reason(error: OSError) -> str:
    """Return the reason of an error of the system, in words."""
    return _REASONS.get(error.errno or 0) or error.strerror or type(error).__name__


def lack(error: BaseException) -> str:
    """Return in one line what the system lacks for a command, or "" for an error that is not of the system.

    Memory, descriptors, threads, processes, space on disks and the program's own files are of the system.
    """
    match error:
        case MemoryError():
            return f"there is not enough memory for this command; {_LIMITS}"
        case OSError():
            name = error.filename
            where = f"{named(name)}: " if isinstance(name, str | bytes | os.PathLike) else ""
            return f"{where}{system_reason(error)}; remove the cause, or {_LIMITS}"
        case ImportError():
            return f"a module of the program cannot be imported: {error}; {_LIMITS}, or set it up again"
        case RuntimeError() if _NO_THREAD in str(error):
            return f"no thread can be started; {_LIMITS}"
    return ""


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Return a regular file, open for reading without buffer. Raises FileError; never waits."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise FileError(path, "a socket or a device, not a regular file", error.errno) from None
        raise FileError(path, system_reason(error), error.errno or 0) from None
    except ValueError as error:
        reason = "has a NUL character" if "null" in str(error) else "cannot be encoded"
        raise FileError(path, f"the name {reason}: there is no such file") from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb", buffering=0)
    os.close(descriptor)
    raise FileError(path, f"{_kind(mode)}; name a regular file", folder=stat.S_ISDIR(mode))


def not_regular(path: str | os.PathLike[str]) -> str:
    """Return what a path names if it is not a regular file, "" if it is one. Raises OSError."""
    mode = os.stat(path).st_mode
    return "" if stat.S_ISREG(mode) else _kind(mode)


def _kind(mode: int) -> str:
    """Return what a file of this mode is, in words."""
    kind = next((name for test, name in _KINDS if test(mode)), "something else")
    return f"{kind}, not a regular file"


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes. Raises FileError."""
    with open_regular(path) as file:
        content = bytearray()
        try:
            while len(content) <= most and (part := os.read(file.fileno(), min(_CHUNK, most + 1))):
                content += part
        except OSError as error:
            raise FileError(path, system_reason(error), error.errno or 0) from None
    if len(content) > most:
        raise FileError(path, f"has more than {most} bytes, the most that is read; name a smaller file")
    return bytes(content)


def read_text(path: str | os.PathLike[str], most: int) -> str:
    """Return the text of a regular UTF-8 file of at most `most` bytes, without a byte-order mark.

    Raises FileError.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(path, f"not text in UTF-8 (byte {error.start})") from None


def credible_size(path: str | os.PathLike[str], file: io.FileIO) -> int:
    """Return the size of an open file in bytes. Raises FileError for a sparse file that is mostly holes.

    Work and memory follow the size, and a file of 100 GB without data costs its maker nothing.
    """
    size, data = size_and_data(file)
    if size > _MOST_HOLES + _MOST_PART * data:
        raise FileError(
            path,
            f"a sparse file, in which {data} of {size} bytes are data; read a copy made by cp --sparse=never",
        )
    return size


def size_and_data(file: io.FileIO) -> tuple[int, int]:
    """Return the size of an open file in bytes, and how many of them are data; a sparse file has fewer.

    Where the file system does not tell, all of them are. The file is at its start afterwards.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        return size, _data(file.fileno(), size)
    finally:
        os.lseek(file.fileno(), 0, os.SEEK_SET)


def _data(descriptor: int, size: int) -> int:
    """Return how many bytes of an open file are data, as far as the file system tells."""
    data = position = 0
    for _ in range(_MOST_PARTS):
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
            position = os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError as error:
            return data if error.errno == errno.ENXIO else size
        data += position - begin
    return data


def wrong_path(path: str | os.PathLike[str]) -> str:
    """Return why a path is not a readable regular file, without reading it, or ""."""
    try:
        open_regular(Path(path)).close()
    except FileError as error:
        return error.reason
    return ""
