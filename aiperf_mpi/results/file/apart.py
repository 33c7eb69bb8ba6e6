# SPDX-License-Identifier: Apache-2.0
"""Read result files in a process of their own, which a damaged file may end, stop or fill without harm.

HDF5 trusts its files: a few changed bytes make it loop for ever, abort or crash, and after hundreds of
damaged files in one process it aborts for any. So a file of unknown origin is read by `python -m
aiperf_mpi.results.file.apart`, which sends back the content. The limits of that process are in CPU seconds
and in memory, so that a busy machine does not refuse a good file.

The two processes talk by pickle over their own pipes. Nothing of it is stored, and no byte of the file is
unpickled: the child pickles the arrays and texts that h5py has read. It has the user and the rights of its
parent, so that a file which took it over would gain nothing by its answer.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from aiperf_mpi.files import lack
from aiperf_mpi.printable import named
from aiperf_mpi.results.file.resultfile import NotAResult, Result, read

#: CPU seconds to read a file, and for each MB of it; an honest file takes a hundredth of a second a MB.
_SECONDS, _SECONDS_PER_MB = 4.0, 0.1

#: Bytes that reading a file may take in addition to what the process has, and for each byte of the file.
_ROOM, _ROOM_PER_BYTE = 256 << 20, 4

#: Files that one process reads: HDF5 loses a little of its state with each damaged one.
_MOST_FILES = 100


class Reader:
    """A process that reads files one after the other; another one takes its place after its end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._files = 0

    def read(self, path: Path | str) -> Result:
        """Return the content of a result file. Raises NotAResult, also where the file ended the process."""
        if self._process is None or self._files >= _MOST_FILES:
            self.close()
            try:
                self._process, self._files = _start(), 0
            except OSError as error:
                raise NotAResult(
                    f"{named(path)}: cannot be read, as the process that reads it cannot start: {lack(error)}"
                ) from None
        self._files += 1
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump((_folder(), os.fspath(path)), process.stdin)
            process.stdin.flush()
            done, answer = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise NotAResult(f"{named(path)}: {self._ended()}") from None
        if not done:
            raise NotAResult(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ended(self) -> str:
        """Return why the process ended while it read a file."""
        process, self._process = self._process, None
        assert process is not None
        process.communicate()
        code = process.returncode
        if code == -signal.SIGXCPU:
            return "not a result: it is damaged so that reading it does not end"
        if code == -signal.SIGKILL:
            return (
                "the process that reads it was killed: a limit on memory or CPU time was reached (ulimit -a)"
            )
        if code >= 0:
            return "not a result: it is damaged so that reading it fills the memory"
        return f"not a result: it is damaged so that HDF5 fails (signal {-code})"


def read_apart(path: Path | str) -> Result:
    """Return the content of a result file of unknown origin. Raises NotAResult."""
    return _READER.read(path)


def _folder() -> str:
    """Return the working folder, to which a relative path belongs; "" if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _start() -> subprocess.Popen[bytes]:
    """Start the process with this Python and package."""
    package_parent = str(Path(__file__).resolve().parents[3])
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "aiperf_mpi.results.file.apart"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


# -- the process -----------------------------------------------------------------------------------


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Read the files whose names come from `source`, and send their contents to `sink`, until it ends."""
    while True:
        try:
            folder, path = pickle.load(source)
        except EOFError:
            return
        with contextlib.suppress(OSError):
            os.chdir(folder)
        answer: tuple[bool, Any]
        try:
            with _limited(path):
                answer = True, read(path)
        except NotAResult as error:
            answer = False, str(error)
        pickle.dump(answer, sink, protocol=pickle.HIGHEST_PROTOCOL)
        sink.flush()


@contextlib.contextmanager
def _limited(path: str) -> Iterator[None]:
    """Limit CPU time and memory of this process while it reads a file; a limit that is lower stays."""
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError):
        size = 0
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime + _SECONDS + _SECONDS_PER_MB * size / 1e6
    with _limit(resource.RLIMIT_CPU, int(seconds) + 1), _limit(resource.RLIMIT_AS, _mapped(size)):
        yield


@contextlib.contextmanager
def _limit(kind: int, amount: int) -> Iterator[None]:
    """Lower the limit `kind` of this process to `amount`, and restore it."""
    soft, hard = resource.getrlimit(kind)
    known = [value for value in (soft, hard, amount) if value != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def _mapped(size: int) -> int:
    """Return the most bytes of address space of this process while it reads a file of `size` bytes."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return resource.RLIM_INFINITY
    return pages * resource.getpagesize() + _ROOM + _ROOM_PER_BYTE * size


_READER = Reader()
atexit.register(_READER.close)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer)
