# SPDX-License-Identifier: Apache-2.0
"""Rank 0's end of the pipe to the writer process: sending never blocks, and errors come back as text.

Messages are frames: a kind, the length of the payload, the payload. Rows travel as the bytes of their dtype,
events as JSON. Frames that the pipe does not accept at once wait in a bounded queue, which rank 0's loop
empties through `pump`.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aiperf_mpi.launchers import LAUNCHER_PREFIXES
from aiperf_mpi.planning.folder import RunFolder
from aiperf_mpi.results.file.rows import RunHeader
from aiperf_mpi.results.file.segments import Continuation

#: Head of a frame: kind and length of the payload.
FRAME = struct.Struct("<BI")
EVENT, RECORD, EPOCH, TRIAL, RANK, SAMPLE = range(1, 7)

#: Head of a RECORD payload: the slot.
SLOT = struct.Struct("<q")

#: Most bytes that wait for the writer, about half a million rows. If more would wait, the run ends.
QUEUE_BYTES = 64 << 20

#: The module that the writer process runs.
WRITER = "aiperf_mpi.results.output.process"

#: What the writer reports of itself, next to its errors.
_REPORTED = ("locked", "opened", "journal_bytes", "result")

#: Time between two polls of the writer while rank 0 waits for its end, in s (rank 0 returns to MPI each ms).
_CLOSE_POLL = 0.001

#: Seconds that the writer has to remove what a run has made that ends before its core time.
WITHDRAW_SECONDS = 2.0


@dataclass(frozen=True)
class WriterStatus:
    """What rank 0 knows of the writer.

    Attributes:
        errors: texts for the log; any error means that the run must drain.
        locked: whether the writer holds the folder of a run that is resumed.
        opened: whether the writer has opened its journal.
        journal_bytes: size of the journal.
        queued_bytes: bytes that wait for the writer.
        result: path of the final file after it is written.
        finished: whether the writer has ended.
    """

    errors: tuple[str, ...] = ()
    locked: bool = False
    opened: bool = False
    journal_bytes: int = 0
    queued_bytes: int = 0
    result: str = ""
    finished: bool = False


class FrameQueue:
    """Frames that wait until a pipe accepts them; writing to the pipe never blocks.

    Arguments:
        descriptor: the pipe's end for writing.
        limit: most bytes that may wait.

    Attributes:
        waiting: bytes that wait.
    """

    def __init__(self, descriptor: int, limit: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor, self.limit = descriptor, limit
        self._frames: deque[memoryview] = deque()
        self.waiting = 0

    def add(self, kind: int, payload: bytes) -> bool:
        """Append a frame; return False, without appending it, if more than `limit` bytes would wait."""
        frame = FRAME.pack(kind, len(payload)) + payload
        if self.waiting + len(frame) > self.limit:
            return False
        self._frames.append(memoryview(frame))
        self.waiting += len(frame)
        return True

    def flush(self) -> None:
        """Write as many bytes as the pipe accepts now; drop all frames if its reader is gone."""
        while self._frames:
            try:
                written = os.write(self._descriptor, self._frames[0])
            except BlockingIOError:
                return
            except BrokenPipeError:
                self.clear()
                return
            if written < len(self._frames[0]):
                self._frames[0] = self._frames[0][written:]
            else:
                self._frames.popleft()
            self.waiting -= written

    def clear(self) -> None:
        """Drop all frames."""
        self._frames.clear()
        self.waiting = 0


def withdraw(process: subprocess.Popen[bytes], folder: RunFolder | None) -> None:
    """Close the writer's pipe, wait WITHDRAW_SECONDS for it, and remove the run's folder if it is empty."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(WITHDRAW_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    if folder is not None:
        folder.remove()


class RunMessages(ABC):
    """The messages of a run to its writer, as frames that `_send` takes."""

    _folder: RunFolder | None = None

    def send_open(
        self,
        header: RunHeader,
        output: Path | str,
        fsync_seconds: float = 1.0,
        partial_seconds: float = 30.0,
        resume: Continuation | None = None,
    ) -> None:
        """Send the run's header and the folder for its files, which the run owns.

        The folder has no journal, unless the run goes on there: then `resume` is what it takes over.
        """
        settings = {
            "output": str(output),
            "fsync_seconds": fsync_seconds,
            "partial_seconds": partial_seconds,
            "resume": None if resume is None else resume.to_dict(),
        }
        self._event("open", header.to_dict(), settings)

    def send_lock(self, folder: Path) -> None:
        """Have the writer hold the folder of a run that is resumed, before anything of it is read."""
        self._event("lock", {"folder": str(folder)})

    def send_folder(self, folder: RunFolder) -> None:
        """Send the folder that the run makes: an end before the core time removes what it created."""
        self._folder = folder
        self._event("folder", folder.to_dict())

    def send_start(self, core_start_utc: str) -> None:
        """Send the start of the core time (ISO 8601); the writer then writes the first partial result."""
        self._event("start", {"core_start_utc": core_start_utc})

    def send_mark(self, t: float) -> None:
        """Send a time mark: the run goes on at core second `t`."""
        self._event("mark", {"t": t})

    def send_record(self, slot: int, record: bytes) -> None:
        """Send a committed record of the history (RECORD_DTYPE) and its slot."""
        self._send(RECORD, SLOT.pack(slot) + record)

    def send_epoch(self, rows: bytes) -> None:
        """Send one or more rows of EPOCH_ROW."""
        self._send(EPOCH, rows)

    def send_trial(self, rows: bytes) -> None:
        """Send one or more rows of TRIAL_ROW."""
        self._send(TRIAL, rows)

    def send_rank(self, rows: bytes) -> None:
        """Send one or more rows of RANK_ROW."""
        self._send(RANK, rows)

    def send_sample(self, rows: bytes) -> None:
        """Send one or more rows of SAMPLE_ROW."""
        self._send(SAMPLE, rows)

    def send_error_final(self, trial_id: int, error: float) -> None:
        """Send the validation error of the best model, which was loaded again after core stop."""
        self._event("final", {"trial_id": int(trial_id), "error": float(error)})

    def send_stop(self, end: str, core_seconds: float, total_seconds: float, cause: str = "") -> None:
        """Send the end of the core time: `end` is time_limit or drained (with its `cause`); times in s."""
        data = {"end": end, "core_seconds": core_seconds, "total_seconds": total_seconds, "cause": cause}
        self._event("stop", data)

    def _event(self, name: str, data: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
        """Send an event as JSON."""
        self._send(EVENT, json.dumps({"event": name, "data": data, "settings": settings or {}}).encode())

    @abstractmethod
    def _send(self, kind: int, payload: bytes) -> None:
        """Send a frame."""


class WriterClient(RunMessages):
    """The writer process and the queue to it. Make one with `WriterClient.start()`, before MPI_Init."""

    def __init__(self, process: subprocess.Popen[bytes], queue_bytes: int = QUEUE_BYTES) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the writer process needs pipes for its standard input and output")
        self._process = process
        self._input, self._output = process.stdin, process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._queue = FrameQueue(self._input.fileno(), queue_bytes)
        self._lines = b""
        self._status = WriterStatus()
        self._closing = False

    @staticmethod
    def start(queue_bytes: int = QUEUE_BYTES, module: str = WRITER) -> WriterClient:
        """Start the writer with this Python and package, in a new session, without launcher variables."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_PREFIXES)}
        package_parent = str(Path(__file__).resolve().parents[3])
        paths = [package_parent, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        return WriterClient(process, queue_bytes)

    @property
    def pid(self) -> int:
        """Process id of the writer."""
        return self._process.pid

    # -- receiving ---------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send waiting frames and read the writer's reports, without blocking; call it in a loop."""
        self._queue.flush()
        self._status = replace(self._status, queued_bytes=self._queue.waiting)
        self._read()

    def status(self) -> WriterStatus:
        """Return what is known of the writer; call `pump` first to update it."""
        return self._status

    def close(
        self,
        end: str,
        core_seconds: float,
        total_seconds: float,
        cause: str = "",
        *,
        timeout: float = 120.0,
        between: Callable[[], object] = lambda: None,
    ) -> WriterStatus:
        """Send `stop`, have result.h5 written, and wait at most `timeout` s until the writer has ended.

        `between` is called every millisecond while waiting (rank 0 serves MPI in it). The returned status has
        the path of the result, or errors that say why there is none.
        """
        self.send_stop(end, core_seconds, total_seconds, cause)
        self._event("close", {})
        self._closing = True
        limit = time.monotonic() + timeout
        while not self._status.finished:
            self.pump()
            between()
            if time.monotonic() > limit:
                self._process.kill()
                self._lose(f"the result writer did not finish within {timeout:g} s and was killed")
            elif not self._status.finished:
                time.sleep(_CLOSE_POLL)
        return self._status

    def abandon(self) -> None:
        """Close the pipe and wait for the writer to end, which keeps what it has as after rank 0's death."""
        self._queue.clear()
        self._input.close()
        self._process.wait()
        self._output.close()
        self._status = replace(self._status, queued_bytes=0, finished=True)

    def withdraw(self) -> None:
        """End a run before its core time: the writer then removes what the run has made."""
        withdraw(self._process, self._folder)

    # -- inside ------------------------------------------------------------------------------------

    def _send(self, kind: int, payload: bytes) -> None:
        """Queue a frame and send what the pipe accepts; a full queue is an error."""
        if self._status.finished:
            return
        if self._queue.add(kind, payload):
            self.pump()
        else:
            self._error(
                f"the result writer lags by more than {self._queue.limit >> 20} MiB: rows are lost from now "
                "on"
            )

    def _read(self) -> None:
        """Take over the writer's reports, lines of JSON."""
        if self._output.closed:
            return
        try:
            data = os.read(self._output.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._ended()
            return
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            report = json.loads(line)
            for error in report.get("errors", ()):
                self._error(error)
            known = {key: report[key] for key in _REPORTED if key in report}
            self._status = replace(self._status, **known)

    def _ended(self) -> None:
        """Handle the end of the writer, which has closed its output."""
        code = self._process.wait()
        if code or not self._closing:
            self._lose(f"the result writer ended early, with exit code {code}")
        else:
            self._release()

    def _lose(self, text: str) -> None:
        """Record an error and the end of the writer."""
        self._error(text)
        self._process.wait()
        self._release()

    def _release(self) -> None:
        """Close the pipes of a writer that has ended."""
        self._queue.clear()
        self._input.close()
        self._output.close()
        self._status = replace(self._status, queued_bytes=0, finished=True)

    def _error(self, text: str) -> None:
        """Record an error once."""
        if text not in self._status.errors:
            self._status = replace(self._status, errors=(*self._status.errors, text))
