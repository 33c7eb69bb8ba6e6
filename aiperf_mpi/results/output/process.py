# SPDX-License-Identifier: Apache-2.0
"""The writer process: it writes the journal and the results of a run, next to rank 0 and without MPI.

`python -m aiperf_mpi.results.output.process` reads the frames of :mod:`aiperf_mpi.results.output.client` on
its standard input and reports on its standard output, in lines of JSON. It outlives rank 0: if its input ends
without a `close`, it syncs the journal, writes a last partial result and ends; before the core time it
removes what the run has made instead. It ignores signals that end or drain a job.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.classes import RULES, OfficialRules
from aiperf_mpi.config.paths import because, message
from aiperf_mpi.files import FileError
from aiperf_mpi.planning.folder import RunFolder, lost
from aiperf_mpi.results.file import resultfile, tables
from aiperf_mpi.results.file.collector import ROW_DTYPES, Run, RunCollector
from aiperf_mpi.results.file.replay import Network
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.output import package
from aiperf_mpi.results.output.client import (
    EPOCH,
    EVENT,
    FRAME,
    RANK,
    RECORD,
    SAMPLE,
    SLOT,
    TRIAL,
    WriterClient,
)
from aiperf_mpi.results.output.journal import Journal, JournalError, collect, encode_row
from aiperf_mpi.results.output.lock import Lock, acquire
from aiperf_mpi.results.output.package import JOURNAL, MANIFEST, PARTIAL, RESULT, SUMMARY
from aiperf_mpi.results.output.partial import PartialResult, write_own
from aiperf_mpi.trials.record import check

__all__ = ["JOURNAL", "PARTIAL", "RESULT", "WriterClient", "main"]

#: Signals by which terminals, launchers and batch systems end or drain a job.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_ROW_KINDS = {EPOCH: "epoch", TRIAL: "trial", RANK: "rank", SAMPLE: "sample"}
_CHUNK = 1 << 20


def main(rules: OfficialRules = RULES) -> int:
    """Serve the pipe until it ends, and return 0: errors of files are reported to the client.

    The benchmark has one set of `rules`; a program of tests passes others.
    """
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    return Writer(rules).serve(sys.stdin.fileno(), sys.stdout.fileno())


class Reports:
    """The lines of JSON that the process sends to its client: news and errors, each once.

    Attributes:
        sink: the descriptor to which they are written.
    """

    def __init__(self) -> None:
        self.sink = -1
        self._errors: list[str] = []
        self._sent, self._listened = (-1, 0), True

    def complain(self, text: str) -> None:
        """Record an error once; after it is reported, the coordinator drains the run."""
        if text not in self._errors:
            self._errors.append(text)

    def send(self, journal_bytes: int, facts: dict[str, Any]) -> None:
        """Send a line with new facts and errors, if there are any."""
        if not self._listened or ((journal_bytes, len(self._errors)) == self._sent and not facts):
            return
        new, self._sent = self._errors[self._sent[1] :], (journal_bytes, len(self._errors))
        try:
            line = json.dumps({"journal_bytes": journal_bytes, "errors": new, **facts}) + "\n"
            os.write(self.sink, line.encode())
        except BrokenPipeError:
            # Rank 0 is dead: its pipe to this process ends as well, and `Writer.serve` handles that.
            self._listened = False


class Writer:
    """The state of the process: the run so far, its journal, and the thread that builds a partial result."""

    def __init__(self, rules: OfficialRules = RULES) -> None:
        self._run, self._rules = RunCollector(), rules
        self._journal: Journal | None = None
        self._folder, self._run_id = Path(), ""
        self._partial: PartialResult | None = None
        self._reports, self._closed = Reports(), False
        self._new_folder: RunFolder | None = None  # until the core time starts
        self._lock: Lock | None = None

    def serve(self, source: int, sink: int) -> int:
        """Read frames from the descriptor `source` until it ends or `close` comes; report on `sink`."""
        self._reports.sink, pending = sink, bytearray()
        while not self._closed:
            readable, _, _ = select.select([source], [], [], self._patience())
            if readable:
                data = os.read(source, _CHUNK)
                if not data:
                    break
                pending += data
                self._take_frames(pending)
            self._housekeeping()
        try:
            return self._finish() if self._closed else self._on_coordinator_death()
        finally:
            self._let_go()

    # -- messages of rank 0 ------------------------------------------------------------------------

    def _take_frames(self, pending: bytearray) -> None:
        """Handle the whole frames at the start of `pending` and remove them."""
        for kind, payload in whole_frames(pending):
            try:
                self._take(kind, payload)
            except (ValueError, KeyError, TypeError, OSError) as error:
                self._reports.complain(f"result writer: message of kind {kind} refused: {error}")

    def _take(self, kind: int, payload: bytes) -> None:
        """Add a message to the run and to the journal."""
        if kind == EVENT:
            message = json.loads(payload)
            self._take_event(message["event"], message["data"], message["settings"])
        elif kind == RECORD:
            (slot,) = SLOT.unpack_from(payload)
            record = np.frombuffer(payload, ROW_DTYPES["record"], offset=SLOT.size)
            if len(record) != 1 or not check(record[0]):
                raise ValueError(f"the record of slot {slot} is torn: its checksum or version is wrong")
            self._run.record(slot, record)
            self._append({"kind": "record", "slot": slot, "row": encode_row(record)})
        elif kind in _ROW_KINDS:
            name = _ROW_KINDS[kind]
            rows = np.frombuffer(payload, ROW_DTYPES[name])
            self._run.rows(name, rows)
            self._append(*({"kind": name, "row": encode_row(rows[i : i + 1])} for i in range(len(rows))))
        else:
            raise ValueError("unknown kind")

    def _take_event(self, name: str, data: dict[str, Any], settings: dict[str, Any]) -> None:
        """Handle an event, and add it to the run and to the journal."""
        if name == "close":
            self._closed = True
            return
        if name == "folder":
            self._new_folder = RunFolder.from_dict(data)
            return
        if name == "lock":
            self._take_lock(Path(data["folder"]))
            return
        if name == "open":
            self._open(settings, data["run_id"])
        self._run.event(name, data)
        self._append({"kind": name, "data": data})
        if name == "open":
            self._report_open()
        if name == "start":
            self._new_folder = None
            if self._partial is not None:
                self._partial.begin()

    def _take_lock(self, folder: Path) -> None:
        """Hold the folder of a run that is resumed, and report whether that was possible."""
        try:
            self._lock = acquire(folder, "--resume")
        except ConfigError as error:
            self._reports.complain(str(error))
        self._report(locked=self._lock is not None)

    def _let_go(self) -> None:
        """Release the lock of the folder."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def _open(self, settings: dict[str, Any], run_id: str) -> None:
        """Open the journal in the folder, which must still be this run's; read it first where the run goes
        on."""
        self._folder, self._run_id = Path(settings["output"]), run_id
        resume, seconds = settings.get("resume"), float(settings["fsync_seconds"])
        try:
            if problem := lost(self._folder, run_id):
                raise ConfigError(problem)
            self._lock = self._lock or acquire(self._folder)
            if resume is not None:
                self._run = collect(self._folder / JOURNAL)[0]
            self._journal = open_journal(self._folder, run_id, seconds, goes_on=resume is not None)
        except (ConfigError, FileError, JournalError) as error:
            self._reports.complain(str(error))
            self._let_go()
            return
        self._partial = PartialResult(
            self._folder, run_id, self._journal, float(settings["partial_seconds"]), self._reports.complain
        )
        if resume is not None:
            self._run.event("resume", resume)
            self._append({"kind": "resume", "data": resume})

    def _report_open(self) -> None:
        """Report whether the journal has the header, on the disk: a full one shows before the core time."""
        if self._journal is not None and (problem := self._journal.forced()):
            self._reports.complain(problem)
        self._report(opened=self._journal is not None and not self._journal.error)

    def _append(self, *entries: dict[str, Any]) -> None:
        """Append entries to the journal, if there is one."""
        if self._journal is not None:
            self._journal.append(*entries)

    # -- between messages --------------------------------------------------------------------------

    def _patience(self) -> float:
        """Return the time in s until the next partial result is due, at most 0.2."""
        return 0.2 if self._partial is None else max(0.0, min(0.2, self._partial.left))

    def _housekeeping(self) -> None:
        """Sync the journal, start a partial result if it is due, and report news."""
        if self._journal is not None:
            self._journal.sync(time.monotonic())
            if self._journal.error:
                self._reports.complain(self._journal.error)
        if self._lock is not None and (problem := self._lock.lost()):
            self._reports.complain(problem)
        if self._partial is not None:
            self._partial.advance(self._snapshot)
        self._report()

    def _snapshot(self, end: str = "") -> Run:
        """Return the run so far."""
        whole = self._journal is not None and not self._journal.error
        return self._run.snapshot(end=end, journal_complete=whole)

    def _report(self, **facts: Any) -> None:
        """Send the client new facts and errors, if there are any."""
        self._reports.send(self._journal.size if self._journal is not None else 0, facts)

    # -- the end -----------------------------------------------------------------------------------

    def _on_coordinator_death(self) -> int:
        """Close the journal, and write a last partial result or, before the core time, remove the start."""
        if self._partial is not None:
            self._partial.join()
        if self._journal is not None:
            self._journal.forced()
        if self._new_folder is not None:
            self._let_go()
            remove_start(self._journal, self._new_folder)
        elif self._partial is not None:
            self._partial.write(self._snapshot(end="killed"))
        return 0

    def _finish(self) -> int:
        """Write the final result with its verdict, and remove the partial one."""
        if self._journal is None or self._partial is None:
            self._report()
            return 0
        self._partial.join()
        if problem := self._journal.forced():
            self._reports.complain(problem)
        path, run = self._folder / RESULT, self._snapshot()
        try:
            write_own(
                path, self._run_id, final_image(run, self._partial.networks, self._rules), self._journal
            )
            path.with_name(PARTIAL).unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            self._reports.complain(f"{path}: cannot be written: {error}")
            self._report()
            return 0
        try:
            package.describe(self._folder, self._rules)
        except (OSError, ValueError) as error:
            # The result is complete without them: `verify --json` prints the same.
            self._reports.complain(f"{self._folder}: {SUMMARY} or {MANIFEST} cannot be written: {error}")
        self._report(result=str(path))
        return 0


def whole_frames(pending: bytearray) -> list[tuple[int, bytes]]:
    """Return kind and payload of the whole frames at the start of `pending`, and remove them from it."""
    frames, position = [], 0
    while len(pending) - position >= FRAME.size:
        kind, length = FRAME.unpack_from(pending, position)
        end = position + FRAME.size + length
        if len(pending) < end:
            break
        frames.append((kind, bytes(pending[position + FRAME.size : end])))
        position = end
    del pending[:position]
    return frames


def open_journal(folder: Path, run_id: str, fsync_seconds: float, goes_on: bool = False) -> Journal:
    """Create the journal of a run in its folder, or open it where the run `goes_on`.

    Raises ConfigError if the folder is not the run's.
    """
    if problem := lost(folder, run_id):
        raise ConfigError(problem)
    try:
        return Journal(folder / JOURNAL, fsync_seconds, goes_on)
    except OSError as error:
        why = because(error, folder / JOURNAL, "name another folder", created=True)
        raise ConfigError(message("--output", folder / JOURNAL, *why)) from error


def remove_start(journal: Journal | None, folder: RunFolder) -> None:
    """Remove the open journal and the new folders of a run that has ended before its core time.

    The folder may belong to another run meanwhile, whose journal has the same name.
    """
    if journal is not None:
        in_place = journal.in_place()
        # On NFS a file that is removed while it is open stays under another name, and so does its folder.
        journal.close()
        if in_place:
            journal.path.unlink(missing_ok=True)
    folder.remove()


def final_image(run: Run, networks: dict[int, Network] | None = None, rules: OfficialRules = RULES) -> bytes:
    """Return the bytes of the result file of a run that has ended, with the verdict in its attributes."""
    with resultfile.new_file(tables.build(run, networks)) as file:
        verdict = judge.judge_content(resultfile.load(file), rules)
        resultfile.set_attributes(file, verdict.attributes())
        return resultfile.seal(file, complete=True)


if __name__ == "__main__":
    sys.exit(main())
