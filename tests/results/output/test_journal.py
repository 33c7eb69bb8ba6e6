# SPDX-License-Identifier: Apache-2.0
"""The journal: whole after any cut, exact in every value, refused if it is not a journal."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.results.file import tables
from aiperf_mpi.results.file.collector import ROW_DTYPES, Run
from aiperf_mpi.results.file.rows import EPOCH_ROW, RANK_ROW, TRIAL_ROW, new_row
from aiperf_mpi.results.output import journal
from aiperf_mpi.results.output.journal import (
    Journal,
    JournalError,
    decode,
    decode_row,
    encode,
    encode_row,
    replay,
)
from tests.helpers.results.example_run import Example, example_run


def write(path: Path, example: Example) -> None:
    """Write the journal of an example as the writer process does."""
    book = Journal(path)
    book.append({"kind": "open", "data": example.header.to_dict()})
    book.append({"kind": "start", "data": {"core_start_utc": "2026-01-02T03:04:05+00:00"}})
    for slot, record in zip(example.slots, example.records, strict=True):
        book.append({"kind": "record", "slot": slot, "row": encode_row(np.array([record]))})
    for kind, rows in (
        ("epoch", example.epochs),
        ("trial", example.trials),
        ("rank", example.ranks),
        ("sample", example.samples),
    ):
        book.append(*({"kind": kind, "row": encode_row(rows[i : i + 1])} for i in range(len(rows))))
    if example.final:
        book.append({"kind": "final", "data": {"trial_id": example.final[0], "error": example.final[1]}})
    book.append({"kind": "stop", "data": example.stop()})
    book.close()


def assert_same(first: Run, second: Run) -> None:
    for name in ("slots", "records", "epochs", "trials", "ranks", "samples"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name
    for name in ("header", "core_start_utc", "core_seconds", "total_seconds", "end", "end_cause", "final"):
        assert getattr(first, name) == getattr(second, name), name


def test_replay_gives_back_every_bit_of_a_run(tmp_path: Path) -> None:
    example = example_run()
    write(tmp_path / "j", example)
    assert_same(replay(tmp_path / "j"), example.run())


def test_every_value_survives_a_row() -> None:
    # The ends of each type, numbers that JSON lacks, and text that is not ASCII or was cut in a character.
    row = new_row(
        EPOCH_ROW,
        trial_id=-(2**63),
        epoch=2**31 - 1,
        train_samples=2**64 - 1,
        val_samples=2**63 + 1,
        t_start=math.inf,
        t_end=-math.inf,
        lr=5e-324,
        train_loss=0.1 + 0.2,
        partial=255,
    )
    trial = new_row(TRIAL_ROW, cause=b'caf\xc3\xa9 \xff "quoted"\n', precision="bfloat16")
    rank = new_row(
        RANK_ROW, hostname="n1", phase_seconds=np.arange(9) / 3, messages_sent=np.arange(9) - 2**62
    )
    for value in (row, trial, rank):
        line = encode({"kind": "x", "row": encode_row(value)})
        names = list(value.dtype.names or ())
        assert decode_row(decode(line)["row"], names, value.dtype).tobytes() == value.tobytes()


def test_a_cut_journal_is_whole_up_to_its_last_line(tmp_path: Path) -> None:
    # A small run with a short header, so that all of its some 5000 cuts take seconds.
    example = example_run(replicas=1, trials_each=2, epochs_each=2)
    example.header = replace(example.header, config_toml="", departures=(), inventory=None, packages=None)
    write(tmp_path / "whole", example)
    data = (tmp_path / "whole").read_bytes()
    first = data.index(b"\n") + 1
    ends = [i + 1 for i, byte in enumerate(data) if byte == 0x0A]
    cut = tmp_path / "cut"
    cut.write_bytes(data)

    for length in range(len(data) - 1, first, -1):
        with open(cut, "r+b") as file:
            file.truncate(length)
        run = replay(cut)
        # A line that lost only its newline is whole.
        lines = sum(end <= length or end - 1 == length for end in ends)
        counted = (run.header is not None) + bool(run.core_start_utc) + len(run.records) + len(run.epochs)
        counted += len(run.trials) + len(run.ranks) + len(run.samples)
        counted += (run.final is not None) + (run.end == "time_limit")
        assert counted == lines - 1, f"cut at byte {length} of {len(data)}"
        torn = length not in ends and length + 1 not in ends
        assert len(run.problems) == torn and run.journal_complete == (not torn)


def test_a_changed_line_is_left_out_and_named(tmp_path: Path) -> None:
    example = example_run()
    write(tmp_path / "j", example)
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b'"kind":"epoch"' in line)
    lines[place] = lines[place].replace(b"[0,0,", b"[1,0,", 1)
    (tmp_path / "j").write_bytes(b"".join(lines))
    run = replay(tmp_path / "j")
    assert len(run.epochs) == len(example.epochs) - 1
    assert run.problems == (f"{tmp_path / 'j'}: line {place + 1} left out: checksum is missing or wrong",)


@pytest.mark.parametrize("line", [b"\n", b"x" * 200 + b"\n", encode({"kind": "epoch", "row": ["v" * 5000]})])
def test_damaged_lines_are_bounded_in_number_and_words(tmp_path: Path, line: bytes) -> None:
    """The lines before the bound are kept; a file of line breaks would fill the memory with words."""
    path, example = tmp_path / "journal.jsonl", example_run()
    write(path, example)
    with path.open("ab") as file:
        file.write(line * (journal.MOST_PROBLEMS + 5000))
    whole = len(path.read_bytes().splitlines()) - journal.MOST_PROBLEMS - 5000
    run = replay(path)
    assert len(run.problems) == journal.MOST_PROBLEMS + 1 and not run.journal_complete
    assert (
        f"not read from line {whole + journal.MOST_PROBLEMS + 1} on: it has 10000 damaged" in run.problems[-1]
    )
    assert max(map(len, run.problems)) < 1000 and len(run.trials) == len(example.trials)


def test_columns_of_another_version_are_matched_by_name() -> None:
    # A journal whose rows lack `partial` and have a column that this version does not know.
    row = new_row(EPOCH_ROW, trial_id=3, lr=0.1)
    names = [*(name for name in EPOCH_ROW.names or () if name != "partial"), "later"]
    values = [*encode_row(row)[:-1], "whatever"]
    assert decode_row(values, names, EPOCH_ROW).tobytes() == row.tobytes()
    with pytest.raises(ValueError, match="column lr: 'x' does not fit"):
        decode_row(["x"], ["lr"], EPOCH_ROW)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"\x89HDF\r\n\x1a\n", encode({"kind": "header"})])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(JournalError, match="not a journal"):
        replay(tmp_path / "j")


def test_a_size_limit_cuts_back_to_the_last_whole_line(tmp_path: Path) -> None:
    # Run it in its own process, as the limit applies to a whole process.
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom aiperf_mpi.results.output.journal import "
        "Journal\n"
        "book = Journal(Path(sys.argv[1]))\n"
        "for i in range(100): book.append({'kind': 'note', 'data': {'text': 'x' * 100}})\n"
        "print(book.size, book.error)\n"
    )
    limit = 5_000
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "j")],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    size, error = done.stdout.split(" ", 1)
    content = (tmp_path / "j").read_bytes()
    assert len(content) == int(size) <= limit and content.endswith(b"\n")
    assert limit - len(content) < 200, "less than a line below the limit"
    assert "File too large" in error and f"whole up to byte {size}" in error
    assert replay(tmp_path / "j").journal_complete


def test_syncs_are_a_second_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[float] = []
    real = journal.os.fsync
    book = Journal(tmp_path / "j", fsync_seconds=1.0)
    now = 0.0

    def fsync(descriptor: int) -> None:
        synced.append(now)
        real(descriptor)

    monkeypatch.setattr(journal.os, "fsync", fsync)
    for step in range(40):
        now = 100 + step / 8
        book.append({"kind": "note", "data": {"text": "x"}})
        book.sync(now)
    assert synced == [100.0, 101.0, 102.0, 103.0, 104.0]
    # Nothing new, nothing to sync.
    book.sync(200.0)
    book.sync(300.0)
    assert len(synced) == 6


def test_the_journal_of_a_killed_run_gives_its_tables(tmp_path: Path) -> None:
    example = example_run()
    write(tmp_path / "j", example)
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b'"kind":"trial"' not in line and b'"kind":"stop"' not in line]
    (tmp_path / "j").write_bytes(b"".join(kept)[:-5])
    run = replay(tmp_path / "j")
    assert (run.end, run.core_seconds) == ("killed", example.core_seconds)
    columns = tables.build(run).tables["trials"]
    # Trials without a row of their own take what epochs and outcomes say.
    assert columns["status"].tolist() == ["done"] * 4 + ["unfinished"] * 2
    assert columns["train_samples"].tolist() == example.trials["train_samples"].tolist()
    assert columns["best_error"].tolist() == example.trials["best_error"].tolist()


def test_the_header_names_the_columns_of_every_kind(tmp_path: Path) -> None:
    Journal(tmp_path / "j").close()
    header = decode((tmp_path / "j").read_bytes())
    assert header["columns"] == {kind: list(dtype.names or ()) for kind, dtype in ROW_DTYPES.items()}
