# SPDX-License-Identifier: Apache-2.0
"""The journal: everything that a run reported, as lines of JSON in an append-only file.

Each line ends in its own checksum, so torn or altered lines are detected and left out. The journal survives a
kill of its writer at any moment, and `replay` restores the run up to the last whole line. A run that is
resumed goes on in the same file: another header begins each of its segments.
"""

from __future__ import annotations

import io
import json
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from aiperf_mpi.files import FileError, credible_size, open_regular, system_reason
from aiperf_mpi.printable import named, plain
from aiperf_mpi.results.file.collector import ROW_DTYPES, Run, RunCollector
from aiperf_mpi.results.file.schema import SCHEMA_VERSION
from aiperf_mpi.trials.record import seal

FORMAT = "aiperf_mpi.journal/2"

#: The formats that can be read. In the first one a run had no time marks, and could not be resumed.
FORMATS = ("aiperf_mpi.journal/1", FORMAT)

#: Most bytes of a line; the longest is the first event, with the inventory of all nodes.
_MOST_LINE = 64 << 20

#: Damaged lines and entries after which the rest of a journal is not read, and most characters told of one.
MOST_PROBLEMS, _MOST_WORDS = 10_000, 300

#: How the line of an `open` event begins.
_OPENS = b'{"kind":"open",'

#: Bytes in which the end of the last whole line is looked for at a time.
_BLOCK = 1 << 16

_SEAL = ',"crc":"%08x"}'
_SEAL_BYTES = len(_SEAL % 0)


class JournalError(ValueError):
    """A file is not a journal of this version; the message names the file."""


# -- lines -----------------------------------------------------------------------------------------


def encode(entry: dict[str, Any]) -> bytes:
    """Return an entry as one line with a CRC-32 of the bytes before it; NaN and infinities become text."""
    body = json.dumps(_finite(entry), separators=(",", ":"), allow_nan=False).encode()[:-1]
    return body + (_SEAL % zlib.crc32(body)).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the entry of a line, with or without newline. Raises ValueError if torn or altered."""
    text = line.rstrip(b"\n")
    body, mark = text[:-_SEAL_BYTES], text[-_SEAL_BYTES:]
    if mark != (_SEAL % zlib.crc32(body)).encode():
        raise ValueError("checksum is missing or wrong")
    return json.loads(body + b"}")


def encode_row(row: np.ndarray) -> list[Any]:
    """Return a structured row (shape (1,)) as a list in column order: hashes in hexadecimal, NaN as text."""
    return [_plain(row[name][0], row.dtype[name]) for name in row.dtype.names or ()]


def decode_row(values: list[Any], names: list[str], dtype: np.dtype) -> np.ndarray:
    """Return the row (shape (1,)) of the values that `encode_row` gave for the columns `names`.

    A column unknown to `dtype` is left out. Raises ValueError if a value does not fit its column.
    """
    row = np.zeros(1, dtype)
    for name, value in zip(names, values, strict=True):
        if name not in (dtype.names or ()):
            continue
        kind = dtype[name]
        try:
            if kind.kind == "S":
                row[name] = value.encode("utf-8", "surrogateescape")
            elif kind.subdtype and isinstance(value, str):
                row[name][0] = np.frombuffer(bytes.fromhex(value), np.uint8)
            else:
                row[name] = float(value) if kind.kind == "f" else value
        except (AttributeError, TypeError, OverflowError, ValueError) as error:
            raise ValueError(f"column {name}: {value!r} does not fit: {error}") from None
    return row


def _plain(value: Any, kind: np.dtype) -> Any:
    """Return the value of a column in a form that JSON has."""
    if kind.kind == "S":
        return bytes(value).decode("utf-8", "surrogateescape")
    if kind.subdtype:
        return value.tobytes().hex() if kind.subdtype[0] == np.uint8 else value.tolist()
    return value.item()


def _finite(value: Any) -> Any:
    """Return a value whose NaN and infinities, which JSON lacks, are text that `float` reads."""
    match value:
        case float():
            return value if math.isfinite(value) else str(value)
        case dict():
            return {key: _finite(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_finite(entry) for entry in value]
        case _:
            return value


# -- writing ---------------------------------------------------------------------------------------


class Journal:
    """An append-only journal: entries survive a kill of this process, and synced ones a crash of the node.

    `error` is None until writing fails (a full disk, a file-size limit). From then on the journal stays as it
    is, cut back to its last whole line. A journal that `goes_on` exists; a torn line at its end is cut
    off. Raises OSError if the file exists or cannot be created, or does not exist to go on.
    """

    def __init__(self, path: Path, fsync_seconds: float = 1.0, goes_on: bool = False) -> None:
        self.path = path
        self.error: str | None = None
        self._fsync_seconds = fsync_seconds
        self._synced_size = 0
        self._synced_at = -math.inf
        mode = os.O_RDWR if goes_on else os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._file = os.open(path, mode | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.size = whole_bytes(self._file) if goes_on else 0
        if goes_on:
            os.ftruncate(self._file, self.size)
        columns = {kind: list(dtype.names or ()) for kind, dtype in ROW_DTYPES.items()}
        self.append({"kind": "header", "format": FORMAT, "schema": SCHEMA_VERSION, "columns": columns})

    def append(self, *entries: dict[str, Any]) -> None:
        """Append entries; if writing fails, cut the file back and set `error`."""
        if self.error or not entries:
            return
        data = b"".join(map(encode, entries))
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self._fail(error)
            return
        self.size += len(data)

    def sync(self, now: float, *, force: bool = False) -> None:
        """Sync new entries, at most once in `fsync_seconds` unless forced; `now` in s by any clock."""
        due = force or now - self._synced_at >= self._fsync_seconds
        if due and not self.error and self.size > self._synced_size:
            try:
                os.fsync(self._file)
            except OSError as error:
                self._fail(error)
            self._synced_at, self._synced_size = now, self.size

    def forced(self) -> str | None:
        """Sync new entries now; return why that failed, or writing them before, or None."""
        self.sync(0.0, force=True)
        return self.error

    def in_place(self) -> bool:
        """Return whether the path still names this journal: no other file has taken its place."""
        try:
            return os.path.samestat(os.fstat(self._file), os.lstat(self.path))
        except OSError:
            return False

    def close(self) -> None:
        """Sync and close the file."""
        self.sync(0.0, force=True)
        os.close(self._file)

    def _fail(self, error: OSError) -> None:
        """Set `error` and cut the file back to its last whole line, so that a reader finds no torn line."""
        self.error = f"{self.path}: cannot be written: {error.strerror}; it is whole up to byte {self.size}"
        try:
            os.ftruncate(self._file, self.size)
        except OSError as second:
            self.error += f" (cutting it back failed: {second.strerror}; its last line may be torn)"


def whole_bytes(descriptor: int) -> int:
    """Return the bytes of an open file up to the end of its last whole line."""
    end = os.fstat(descriptor).st_size
    while end:
        begin = max(0, end - _BLOCK)
        place = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        end = begin
    return 0


# -- reading ---------------------------------------------------------------------------------------


def read(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the intact entries of a journal in order, and add a line to `problems` for each damaged one.

    With MOST_PROBLEMS problems it ends early, and says so in one more. Raises FileError if the file cannot be
    read: it is not a regular file, or a sparse one.
    """
    with open_regular(path) as raw:
        credible_size(path, raw)
        file, number = io.BufferedReader(raw), 0
        while line := _line(file, path):
            number += 1
            if len(problems) >= MOST_PROBLEMS:
                problems.append(
                    f"{named(path)}: not read from line {number} on: it has {len(problems)} damaged lines"
                )
                return
            try:
                yield decode(line)
            except (RecursionError, ValueError) as error:
                torn = not line.endswith(b"\n")
                why = "is torn" if torn else f"left out: {_words(error)}"
                problems.append(f"{named(path)}: line {number} {why}")


def read_headers(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the headers of a run's segments, the data of its `open` events, without decoding other lines.

    Raises FileError if the file cannot be read.
    """
    with open_regular(path) as raw:
        file = io.BufferedReader(raw)
        while line := _line(file, path):
            if line.startswith(_OPENS):
                with suppress(RecursionError, ValueError):
                    yield decode(line).get("data", {})


def _line(file: io.BufferedReader[io.FileIO], path: Path) -> bytes:
    """Return the next line of at most _MOST_LINE bytes, and skip the rest of a longer one."""
    try:
        line = file.readline(_MOST_LINE)
        rest = line
        while len(rest) == _MOST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(_MOST_LINE)
        return line if rest is line else line + b" ... too long\n"
    except OSError as error:
        raise FileError(path, system_reason(error), error.errno or 0) from None


def replay(path: Path) -> Run:
    """Return the run of a journal up to its last whole line; `Run.problems` names damaged lines.

    Raises FileError if the file cannot be read, JournalError if it does not begin like a journal of this
    version.
    """
    run, problems, _ = collect(path)
    for problem in problems:
        run.event("note", {"text": problem})
    return run.snapshot(end="killed", journal_complete=not problems)


def collect(path: Path) -> tuple[RunCollector, list[str], dict[str, Any]]:
    """Return what the entries of a journal tell of its run, the problems of its lines, and its last header.

    Raises as `replay` does.
    """
    problems: list[str] = []
    entries = read(path, problems)
    header = _header(path, next(entries, {}))
    run = RunCollector()
    for entry in entries:
        try:
            if entry.get("kind") == "header":
                header = _header(path, entry)
            else:
                apply(run, entry, header["columns"])
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            problems.append(f"{named(path)}: {_kind(entry)} left out: {_words(error)}")
    return run, problems, header


def _header(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the header of a journal or of one of its segments. Raises JournalError for another entry."""
    if entry.get("format") not in FORMATS or not isinstance(entry.get("columns"), dict):
        raise JournalError(f"{named(path)}: not a journal: its first line is not that of format {FORMAT!r}")
    return entry


def _kind(entry: dict[str, Any]) -> str:
    """Return what an entry is, for a message."""
    return f"entry of kind {plain(repr(entry.get('kind'))[:60])}"


def _words(error: Exception) -> str:
    """Return the beginning of an error's text, which may repeat a value of any length."""
    return plain(str(error)[:_MOST_WORDS])


def apply(run: RunCollector, entry: dict[str, Any], columns: dict[str, list[str]]) -> None:
    """Add one entry to `run`; `columns` are the header's. Raises ValueError or KeyError for a bad one."""
    kind = entry["kind"]
    if kind == "record":
        row = decode_row(entry["row"], columns[kind], ROW_DTYPES[kind])
        # A NaN may have changed its sign in its text form, so compute the checksum of the record again.
        run.record(int(entry["slot"]), np.array([seal(row[0])]))
    elif kind in ROW_DTYPES:
        run.rows(kind, decode_row(entry["row"], columns[kind], ROW_DTYPES[kind]))
    else:
        run.event(kind, entry["data"])
