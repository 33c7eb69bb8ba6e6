# SPDX-License-Identifier: Apache-2.0
"""Make a new result from a journal, if the result is missing or damaged; old files stay as they are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from aiperf_mpi import hdf5
from aiperf_mpi.files import FileError, system_reason
from aiperf_mpi.printable import counted, named, plain
from aiperf_mpi.results.file import resultfile, tables
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.file.schema import UNENDED
from aiperf_mpi.results.file.score import tick_count
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.output.journal import JournalError, replay
from aiperf_mpi.results.output.package import JOURNAL, PARTIAL

#: Name of the new file, in the folder of the journal.
REPAIRED = "result.repaired.h5"

#: A run with more samples has at most SAMPLES_PER_ROW of them for each row of an epoch or a trial.
MOST_SAMPLES, SAMPLES_PER_ROW = 100_000, 1000


class RepairError(ValueError):
    """A result cannot be repaired from a folder; the message is one line."""


def repair(path: Path | str) -> tuple[Path, tuple[str, ...]]:
    """Write REPAIRED next to the journal of a run; return its path and the problems of the journal.

    `path` is the output folder or a file in it. The journal has every row of the partial result and more, so
    no other file is read. A run that reached its end is judged like any other; one that was killed keeps
    `complete` at 0 and is invalid. Raises RepairError if there is no journal, or already a repaired result.
    """
    if "\0" in os.fspath(path):
        raise RepairError(f"{named(path)}: the name has a NUL character")
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    journal, target = folder / JOURNAL, folder / REPAIRED
    try:
        if os.path.lexists(target):
            raise RepairError(f"{named(target)} exists already; remove or rename it to repair again")
        run = replay(journal)
        _check_samples(run)
        image = image_of(run)
        hdf5.write(target, image)
    except FileError as error:
        raise RepairError(_unreadable(Path(path), folder, error)) from None
    except OSError as error:
        raise RepairError(f"{named(folder)}: {system_reason(error)}") from None
    except (JournalError, RepairError) as error:
        raise RepairError(str(error)) from None
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise RepairError(f"{named(journal)}: {plain(str(error) or type(error).__name__)}") from None
    return target, run.problems


def _check_samples(run: Run) -> None:
    """Raise RepairError if the samples of a journal's run would be out of proportion to its rows."""
    if run.header is None:
        return
    count, rows = tick_count(run.core_seconds, run.header.tick), len(run.epochs) + len(run.trials)
    if count > MOST_SAMPLES and count > SAMPLES_PER_ROW * rows:
        raise RepairError(
            f"its core time of {run.core_seconds} s with a tick of {run.header.tick} s has {count} samples, "
            f"but it has {counted(rows, 'row')} only"
        )


def _unreadable(path: Path, folder: Path, error: FileError) -> str:
    """Return why a journal cannot be read, and what to do, on one line."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return str(error)
    try:
        missing, partial = not path.exists(), (folder / PARTIAL).exists()
    except OSError as other:
        return f"{named(path)}: {system_reason(other)}"
    if missing:
        hint = "give the folder of a run or a file in it"
        return f"{named(path)}: does not exist, and there is no {error.path}; {hint}"
    hint = f"; {named(folder / PARTIAL)} can be judged as it is" if partial else ""
    return f"{error}, and a repair needs it{hint}"


def image_of(run: Run) -> bytes:
    """Return the bytes of the result of a replayed run, with the verdict in its attributes."""
    with resultfile.new_file(tables.build(run)) as file:
        verdict = judge.judge_content(resultfile.load(file))
        ended = run.end not in UNENDED
        if not ended:
            verdict = judge.unended(verdict)
        resultfile.set_attributes(file, verdict.attributes())
        return resultfile.seal(file, complete=ended)


def without_result(folder: Path) -> str:
    """Return what is left of a run that could not write its result, and what to do, on one line."""
    journal = folder / JOURNAL
    try:
        size = journal.stat().st_size
    except OSError:
        size = 0
    if not size:
        return f"no result of this run was written, and {named(folder)} has no journal of it: run again"
    return (
        f"no result of this run was written, but its journal is kept, {size} bytes: remove the cause, then "
        f"make the result with `python -m aiperf_mpi verify --repair {named(folder)}`"
    )
