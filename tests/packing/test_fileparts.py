# SPDX-License-Identifier: Apache-2.0
"""Parts of many files are read by threads, with few of them open, and after a change of a file."""

from __future__ import annotations

import os
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiperf_mpi.files import FileError
from aiperf_mpi.packing.sources.fileparts import FileParts


@pytest.fixture
def files(tmp_path: Path) -> FileParts:
    """Fifty files; number n has the bytes of 100 n to 100 n + 99, each twice."""
    for number in range(50):
        content = b"".join((100 * number + at).to_bytes(2, "big") for at in range(100))
        (tmp_path / f"{number:02d}").write_bytes(content)
    return FileParts(sorted(tmp_path.iterdir()))


def value(files: FileParts, number: int, at: int) -> int:
    return int.from_bytes(files.read(number, 2 * at, 2), "big")


def test_few_files_are_open_whatever_their_number(files: FileParts) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    # The process has files open already, more in a whole run of the tests; a quarter of the limit is left.
    limit = max(64, 2 * before)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        limited = pickle.loads(pickle.dumps(files))
        with ThreadPoolExecutor(8) as threads:
            wanted = [(number * 7 % 50, number % 100) for number in range(2000)]
            values = list(threads.map(lambda one: value(limited, *one), wanted))
        assert values == [100 * number + at for number, at in wanted]
        assert len(os.listdir("/proc/self/fd")) - before <= limit // 4
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ends_of_files(files: FileParts) -> None:
    assert files.read(0, 190, 100) == files.read(0, 190, 10)
    assert files.read(0, 200, 1) == files.read(0, 1 << 40, 1) == files.read(0, 0, 0) == b""


def test_changed_files_are_errors_of_the_host(files: FileParts) -> None:
    os.truncate(files.path(1), 50)
    with pytest.raises(FileError, match="became shorter while it was read"):
        files.read(1, 0, 100)
    files.path(2).unlink()
    with pytest.raises(FileError, match="there is no such file"):
        files.read(2, 0, 1)
    files.path(3).unlink()
    os.mkfifo(files.path(3))
    with pytest.raises(FileError, match="a FIFO, not a regular file"):
        files.read(3, 0, 1)
    with pytest.raises(FileError, match="a FIFO, not a regular file; name"):
        FileParts([files.path(3)])
