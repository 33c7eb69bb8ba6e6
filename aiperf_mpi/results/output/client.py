# SPDX-License-Identifier: Apache-2.0
"""Rank 0's end of the pipe to the writer process: sends never wait, and errors come back as text.

Messages are frames: a kind, the length of the payload, the payload. Rows travel as the bytes of their dtype,
events as JSON. What the pipe does not take at once waits in a bounded queue that `pump` empties from rank 0's
loop.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aiperf_mpi.launchers import LAUNCHER_PREFIXES
from aiperf_mpi.results.file.rows import RunHeader

#: A frame's head: kind and length of the payload.
FRAME = struct.Struct("<BI")
EVENT, RECORD, EPOCH, TRIAL, RANK, SAMPLE = range(1, 7)

#: Head of a RECORD payload: the slot.
SLOT = struct.Struct("<q")

#: Most bytes that wait for the writer: half a million rows. A writer that falls behind further ends the run.
QUEUE_BYTES = 64 << 20

#: Time between two looks at the writer while rank 0 waits for its end, in s (rank 0 returns to MPI each ms).
_CLOSE_POLL = 0.001


@dataclass(frozen=True)
class WriterStatus:
    """What rank 0 knows of the writer.

    `errors` are texts for the log: any of them means that the run must drain. `result` is the path of the
    final file once it is written; `finished` means that the writer has ended.
    """

    errors: tuple[str, ...] = ()
    opened: bool = False
    journal_bytes: int = 0
    queued_bytes: int = 0
    result: str = ""
    finished: bool = False


class WriterClient:
    """The writer process and the queue to it. Make one with `WriterClient.start()`, before MPI is
    initialised."""

    def __init__(self, process: subprocess.Popen[bytes], queue_bytes: int = QUEUE_BYTES) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the writer process needs pipes for its standard input and output")
        self._process = process
        self._input, self._output = process.stdin, process.stdout
        os.set_blocking(self._input.fileno(), False)
        os.set_blocking(self._output.fileno(), False)
        self._queue: deque[memoryview] = deque()
        self._queue_limit = queue_bytes
        self._lines = b""
        self._status = WriterStatus()
        self._closing = False

    @staticmethod
    def start(queue_bytes: int = QUEUE_BYTES) -> WriterClient:
        """Start the writer: this Python, the same package, a session of its own, no launcher's variables."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_PREFIXES)}
        package_parent = str(Path(__file__).resolve().parents[3])
        paths = [package_parent, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        process = subprocess.Popen(
            [sys.executable, "-m", "aiperf_mpi.results.output.process"],
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

    # -- sending -----------------------------------------------------------------------------------

    def send_open(
        self, header: RunHeader, output: Path | str, fsync_seconds: float = 1.0, partial_seconds: float = 30.0
    ) -> None:
        """The run's header and the folder for journal and results (made if missing; it must hold no journal
        yet)."""
        settings = {"output": str(output), "fsync_seconds": fsync_seconds, "partial_seconds": partial_seconds}
        self._event("open", header.to_dict(), settings)

    def send_start(self, core_start_utc: str) -> None:
        """Core time starts (ISO 8601): the first partial result is written now."""
        self._event("start", {"core_start_utc": core_start_utc})

    def send_record(self, slot: int, record: bytes) -> None:
        """A committed record of the history (RECORD_DTYPE) and its slot."""
        self._send(RECORD, SLOT.pack(slot) + record)

    def send_epoch(self, rows: bytes) -> None:
        """One or more rows of EPOCH_ROW."""
        self._send(EPOCH, rows)

    def send_trial(self, rows: bytes) -> None:
        """One or more rows of TRIAL_ROW."""
        self._send(TRIAL, rows)

    def send_rank(self, rows: bytes) -> None:
        """One or more rows of RANK_ROW."""
        self._send(RANK, rows)

    def send_sample(self, rows: bytes) -> None:
        """One or more rows of SAMPLE_ROW."""
        self._send(SAMPLE, rows)

    def send_error_final(self, trial_id: int, error: float) -> None:
        """The validation error of the best model, loaded again after core stop."""
        self._event("final", {"trial_id": int(trial_id), "error": float(error)})

    def send_stop(self, end: str, core_seconds: float, total_seconds: float, cause: str = "") -> None:
        """Core time ended: `end` is time_limit or drained (with its `cause`); times in s."""
        data = {"end": end, "core_seconds": core_seconds, "total_seconds": total_seconds, "cause": cause}
        self._event("stop", data)

    # -- the other direction -----------------------------------------------------------------------

    def pump(self) -> None:
        """Hand the writer what it takes without waiting, and read what it says. Call it in every turn of a
        loop."""
        while self._queue:
            try:
                written = os.write(self._input.fileno(), self._queue[0])
            except BlockingIOError:
                break
            except BrokenPipeError:
                # The writer is gone or going: its last words and its end are read below.
                self._queue.clear()
                break
            if written < len(self._queue[0]):
                self._queue[0] = self._queue[0][written:]
            else:
                self._queue.popleft()
            self._status = replace(self._status, queued_bytes=self._status.queued_bytes - written)
        self._read()

    def status(self) -> WriterStatus:
        """What is known now; call `pump` before."""
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

        `between` is called every millisecond of the waiting (rank 0 serves MPI there). The status has the
        path of the result, or errors that say why there is none.
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
                self._lose(f"the result writer did not finish within {timeout:g} s and was ended")
            elif not self._status.finished:
                time.sleep(_CLOSE_POLL)
        return self._status

    def abandon(self) -> None:
        """Let the writer go, on a rank that turned out not to be rank 0 or before a failure: it keeps what it
        has, as after the death of rank 0, and ends by itself."""
        self._input.close()
        self._process.wait()
        self._output.close()
        self._status = replace(self._status, finished=True)

    # -- inside ------------------------------------------------------------------------------------

    def _event(self, name: str, data: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
        self._send(EVENT, json.dumps({"event": name, "data": data, "settings": settings or {}}).encode())

    def _send(self, kind: int, payload: bytes) -> None:
        if self._status.finished:
            return
        frame = FRAME.pack(kind, len(payload)) + payload
        if self._status.queued_bytes + len(frame) > self._queue_limit:
            self._error(
                f"the result writer is behind by more than {self._queue_limit >> 20} MiB: rows are lost "
                f"from here on"
            )
            return
        self._queue.append(memoryview(frame))
        self._status = replace(self._status, queued_bytes=self._status.queued_bytes + len(frame))
        self.pump()

    def _read(self) -> None:
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
            known = {key: report[key] for key in ("opened", "journal_bytes", "result") if key in report}
            self._status = replace(self._status, **known)

    def _ended(self) -> None:
        """The writer closed its output: it has ended, or is about to."""
        code = self._process.wait()
        if code or not self._closing:
            self._lose(f"the result writer ended early, with exit code {code}")
        else:
            self._release()

    def _lose(self, text: str) -> None:
        self._error(text)
        self._process.wait()
        self._release()

    def _release(self) -> None:
        self._queue.clear()
        self._input.close()
        self._output.close()
        self._status = replace(self._status, queued_bytes=0, finished=True)

    def _error(self, text: str) -> None:
        if text not in self._status.errors:
            self._status = replace(self._status, errors=(*self._status.errors, text))
