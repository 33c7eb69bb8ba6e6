# SPDX-License-Identifier: Apache-2.0
"""Results repaired from journals, and the refusal of files that are not results."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.output import process
from aiperf_mpi.results.output.journal import Journal, encode_row
from aiperf_mpi.results.output.package import JOURNAL
from aiperf_mpi.results.output.repair import REPAIRED, repair
from tests.helpers.results.agreement import command
from tests.helpers.results.example_run import Example, example_run


def journal_of(example: Example, folder: Path, *, stopped: bool) -> Path:
    """Write the journal of a run, with or without its end."""
    journal = Journal(folder / JOURNAL)
    journal.append({"kind": "open", "data": example.header.to_dict()})
    journal.append({"kind": "start", "data": {"core_start_utc": "2026-01-02T03:04:05+00:00"}})
    for slot, record in zip(example.slots, example.records, strict=True):
        journal.append({"kind": "record", "slot": slot, "row": encode_row(np.array([record]))})
    tables = (
        ("sample", example.samples),
        ("epoch", example.epochs),
        ("trial", example.trials),
        ("rank", example.ranks),
    )
    for kind, rows in tables:
        for row in range(len(rows)):
            journal.append({"kind": kind, "row": encode_row(rows[row : row + 1])})
    if stopped and example.final:
        journal.append({"kind": "final", "data": {"trial_id": example.final[0], "error": example.final[1]}})
        journal.append({"kind": "stop", "data": example.stop()})
    journal.close()
    return folder / JOURNAL


def test_a_lost_result_is_written_again(tmp_path: Path) -> None:
    journal_of(example_run(), tmp_path, stopped=True)
    done = command("verify", "--repair", tmp_path)
    assert done.returncode == 0 and "AIPERF_MPI status: VALID" in done.stdout
    assert done.stderr == f"aiperf_mpi: wrote {tmp_path / REPAIRED}\n"
    # The same content as the writer would have written.
    assert (tmp_path / REPAIRED).read_bytes()[:8] == b"\x89HDF\r\n\x1a\n"
    (tmp_path / "direct.h5").write_bytes(process.final_image(example_run().run()))
    ours, theirs = judge.judge(tmp_path / REPAIRED), judge.judge(tmp_path / "direct.h5")
    assert (ours.total_ops, ours.rate, ours.best_error) == (theirs.total_ops, theirs.rate, theirs.best_error)


@pytest.mark.parametrize("cut", [2, 1000, 3000])
def test_a_killed_run_is_invalid_with_what_it_had(cut: int, tmp_path: Path) -> None:
    example = example_run()
    journal = journal_of(example, tmp_path, stopped=False)
    journal.write_bytes(journal.read_bytes()[:-cut])
    whole = journal.read_bytes().split(b"\n")[:-1]
    epochs = sum(line.startswith(b'{"kind":"epoch"') for line in whole)
    assert 0 < epochs <= len(example.epochs) and (cut == 3000) == (epochs < len(example.epochs))
    partial = tmp_path / "result.partial.h5"
    partial.write_bytes(b"damaged")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    done = command("verify", "--repair", partial)
    assert done.returncode == 3 and "AIPERF_MPI status: INVALID" in done.stdout
    assert "AIPERF_MPI end: killed" in done.stdout and "unscored_rate_ops" in done.stdout
    assert "line" in done.stderr and "is torn" in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != REPAIRED} == before
    verdict = judge.judge(tmp_path / REPAIRED)
    assert "V21" in verdict.reason_ids and verdict.trials == 6
    # Every epoch with a whole line is in the result.
    with h5py.File(tmp_path / REPAIRED) as file:
        assert len(file["epochs/epoch"]) == epochs
        assert file.attrs["complete"] == 0 and not file.attrs["valid"]


def test_a_repaired_result_is_not_written_over(tmp_path: Path) -> None:
    journal_of(example_run(), tmp_path, stopped=True)
    target, problems = repair(tmp_path)
    assert problems == ()
    data = target.read_bytes()
    done = command("verify", "--repair", tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "exists already" in done.stderr
    assert target.read_bytes() == data


def test_nothing_is_repaired_without_a_journal(tmp_path: Path) -> None:
    done = command("verify", "--repair", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "there is no such file" in done.stderr
    (tmp_path / JOURNAL).write_bytes(b"\0\xff\n")
    done = command("verify", "--repair", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (
        2,
        "",
        1,
    ) and "not a journal" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]

    # A run that was killed before its header was written leaves nothing to repair.
    (tmp_path / JOURNAL).unlink()
    journal = journal_of(example_run(), tmp_path, stopped=False)
    format_line, open_line, *_ = journal.read_bytes().split(b"\n")
    journal.write_bytes(format_line + b"\n" + open_line[: len(open_line) // 2])
    done = command("verify", "--repair", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (
        2,
        "",
        1,
    ) and "no header" in done.stderr


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_are_refused_in_one_line(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    head = b"\x89HDF\r\n\x1a\n" if seed % 2 else b""
    (tmp_path / "file").write_bytes(head + rng.bytes(int(rng.integers(0, 5000))))
    for words in (["verify"], ["verify", "--json"], ["report"]):
        done = command(*words, tmp_path / "file")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
        assert done.stderr.startswith(f"aiperf_mpi: {tmp_path / 'file'}: not a result")


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    done = command("verify", tmp_path)
    assert done.returncode == 2 and done.stderr == (
        f"aiperf_mpi: {tmp_path}: a folder; name the result file in it, such as {tmp_path / 'result.h5'}\n"
    )
    done = command("verify", tmp_path / "missing.h5")
    assert done.returncode == 2 and done.stderr.endswith("missing.h5: there is no such file\n")
    # The attribute alone does not make a file a result.
    with h5py.File(tmp_path / "claims.h5", "w") as file:
        file.attrs["schema"] = "aiperf_mpi.result"
    done = command("verify", tmp_path / "claims.h5")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "none of the tables trials" in done.stderr
