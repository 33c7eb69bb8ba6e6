# SPDX-License-Identifier: Apache-2.0
"""Read parts of large files, from any thread and in any process."""

from __future__ import annotations

import io
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from aiperf_mpi.files import FileError, not_regular, open_regular

#: Files that are kept open: this part of what the process may open, and at most so many.
_PART, _MOST = 4, 2048


class _Open:
    """An open file, and how many threads read it now."""

    __slots__ = ("file", "readers")

    def __init__(self, file: io.FileIO) -> None:
        self.file, self.readers = file, 0


class FileParts:
    """Some files, of which parts are read. A process opens a file when it first reads it, and keeps the last.

    ImageNet's TFRecords are 1152 files, more than many a process may have open.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Take files, which keep their size. Raises FileError for what is not a file, and OSError."""
        self._paths = tuple(paths)
        for path in paths:
            if kind := not_regular(path):
                raise FileError(path, f"{kind}; name a regular file")
        self._sizes = tuple(os.stat(path).st_size for path in paths)
        self._begin()

    def _begin(self) -> None:
        self._lock, self._open = threading.Lock(), OrderedDict[int, _Open]()
        self._most = min(max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _PART, 1), _MOST)

    def __getstate__(self) -> tuple[tuple[Path, ...], tuple[int, ...]]:
        return self._paths, self._sizes

    def __setstate__(self, state: tuple[tuple[Path, ...], tuple[int, ...]]) -> None:
        self._paths, self._sizes = state
        self._begin()

    def size(self, file: int) -> int:
        """Return the size of a file in bytes."""
        return self._sizes[file]

    def path(self, file: int) -> Path:
        """Return the path of a file."""
        return self._paths[file]

    def read(self, file: int, offset: int, count: int) -> bytes:
        """Return `count` bytes of a file, fewer at its end. Raises FileError and OSError."""
        parts, wanted = [], min(count, max(self._sizes[file] - offset, 0))
        opened = self._take(file)
        try:
            while wanted and (part := os.pread(opened.file.fileno(), wanted, offset)):
                parts.append(part)
                offset, wanted = offset + len(part), wanted - len(part)
        finally:
            with self._lock:
                opened.readers -= 1
        if wanted:
            raise FileError(self._paths[file], "became shorter while it was read; do not change the source")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take(self, file: int) -> _Open:
        """Return an open file, which stays open while it has readers. Raises FileError."""
        with self._lock:
            if file not in self._open:
                self._close_idle()
                self._open[file] = _Open(open_regular(self._paths[file]))
            self._open.move_to_end(file)
            self._open[file].readers += 1
            return self._open[file]

    def _close_idle(self) -> None:
        """Close files that no thread reads, those read longest ago first, to keep one fewer than allowed."""
        for number in list(self._open):
            if len(self._open) < self._most:
                return
            if not self._open[number].readers:
                self._open.pop(number).file.close()
