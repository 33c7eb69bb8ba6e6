# SPDX-License-Identifier: Apache-2.0
"""The partial result of a run: rebuilt now and then in a thread, so that the journal does not wait."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from aiperf_mpi import hdf5
from aiperf_mpi.planning.folder import lost
from aiperf_mpi.results.file import resultfile, tables
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.file.replay import Network
from aiperf_mpi.results.output.journal import Journal
from aiperf_mpi.results.output.package import PARTIAL

#: Largest share of one core's time that is spent on rebuilding the partial result.
PARTIAL_SHARE = 0.01

#: Why a partial result is invalid.
UNENDED = json.dumps([["V21", "the run has not ended"]])


class PartialResult:
    """The file PARTIAL of a run, and when it is rebuilt.

    Arguments:
        folder, run_id, journal: of the run; the folder must stay its own.
        seconds: between two files, at least.
        complain: takes the text of an error, after which the run drains.

    Attributes:
        networks: of the trials so far, replayed once.
    """

    def __init__(
        self, folder: Path, run_id: str, journal: Journal, seconds: float, complain: Callable[[str], None]
    ) -> None:
        self.networks: dict[int, Network] = {}
        self._folder, self._run_id, self._journal = folder, run_id, journal
        self._seconds, self._complain = seconds, complain
        self._due = float("inf")
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Make the first file due, at the start of the core time."""
        self._due = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until the next file is due."""
        return self._due - time.monotonic()

    def advance(self, snapshot: Callable[[], Run]) -> None:
        """Start to build a file of the run as `snapshot` returns it, if one is due."""
        if self.left <= 0 and (self._thread is None or not self._thread.is_alive()):
            self._due = float("inf")
            self._thread = threading.Thread(target=self.write, args=(snapshot(),))
            self._thread.start()

    def join(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join()

    def write(self, run: Run) -> None:
        """Write the file, and set when the next one is due, so that rebuilding takes at most PARTIAL_SHARE of
        a core's time."""
        busy = time.thread_time()
        try:
            content = tables.build(run, self.networks)
            content.attributes["invalid_reasons"] = UNENDED
            with resultfile.new_file(content) as file:
                image = resultfile.seal(file, complete=False)
                write_own(self._folder / PARTIAL, self._run_id, image, self._journal)
        except Exception as error:  # in this thread, no other code would make the run drain
            self._complain(f"{self._folder / PARTIAL}: {type(error).__name__}: {error}")
        busy = time.thread_time() - busy
        self._due = time.monotonic() + max(self._seconds, busy / PARTIAL_SHARE)


def write_own(path: Path, run_id: str, image: bytes, journal: Journal) -> None:
    """Write a result of a run into its folder. The journal, still open, shows whether that is the run's.

    Raises ValueError if the folder is not the run's any more, OSError if it cannot be written.
    """
    if problem := lost(path.parent, run_id, holds_file=journal.in_place()):
        raise ValueError(problem)
    hdf5.write(path, image)
