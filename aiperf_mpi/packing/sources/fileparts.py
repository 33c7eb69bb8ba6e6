# SPDX-License-Identifier: Apache-2.0
"""Read parts of large files, from any thread and in any process."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from aiperf_mpi.files import open_regular


class FileParts:
    """Read parts of some files, from any thread; a file is opened when it is first read, in each process."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, self._sizes = tuple(paths), tuple(os.stat(path).st_size for path in paths)
        self._open()

    def _open(self) -> None:
        self._lock, self._files = threading.Lock(), dict[int, io.FileIO]()

    def __getstate__(self) -> tuple[tuple[Path, ...], tuple[int, ...]]:
        return self._paths, self._sizes

    def __setstate__(self, state: tuple[tuple[Path, ...], tuple[int, ...]]) -> None:
        self._paths, self._sizes = state
        self._open()

    def size(self, file: int) -> int:
        """Return the size of a file in bytes."""
        return self._sizes[file]

    def path(self, file: int) -> Path:
        """Return the path of a file."""
        return self._paths[file]

    def read(self, file: int, offset: int, count: int) -> bytes:
        """Return `count` bytes of a file, fewer at its end. Raises OSError and FileError."""
        with self._lock:
            if file not in self._files:
                self._files[file] = open_regular(self._paths[file])
            descriptor = self._files[file].fileno()
        parts, wanted = [], min(count, max(self._sizes[file] - offset, 0))
        while wanted and (part := os.pread(descriptor, wanted, offset)):
            parts.append(part)
            offset, wanted = offset + len(part), wanted - len(part)
        if wanted:
            raise OSError(0, "became shorter while it was read", str(self._paths[file]))
        return parts[0] if len(parts) == 1 else b"".join(parts)
