# SPDX-License-Identifier: Apache-2.0
"""Make a new result from a journal, if the result is missing or damaged; old files stay as they are."""

from __future__ import annotations

import os
from pathlib import Path

from aiperf_mpi import hdf5
from aiperf_mpi.printable import named
from aiperf_mpi.results.file import resultfile, tables
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.output.journal import JournalError, replay
from aiperf_mpi.results.output.package import JOURNAL, PARTIAL

#: Name of the new file, in the folder of the journal.
REPAIRED = "result.repaired.h5"

#: Values of `Run.end` of a run that did not reach its end.
UNENDED = ("running", "killed")


class RepairError(ValueError):
    """A result cannot be repaired from a folder; the message is one line."""


def repair(path: Path | str) -> tuple[Path, tuple[str, ...]]:
    """Write REPAIRED next to the journal of a run; return its path and the problems of the journal.

    `path` is the output folder or a file in it. The journal has every row of the partial result and more, so
    no other file is read. A run that reached its end is judged like any other; one that was killed keeps
    `complete` at 0 and is invalid. Raises RepairError if there is no journal, or already a repaired result.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    journal, target = folder / JOURNAL, folder / REPAIRED
    if os.path.lexists(target):
        raise RepairError(f"{target} exists already; remove or rename it to repair again")
    try:
        run = replay(journal)
        image = image_of(run)
        hdf5.write(target, image)
    except FileNotFoundError:
        if not Path(path).exists():
            hint = "give the folder of a run or a file in it"
            raise RepairError(f"{path}: does not exist, and there is no {journal}; {hint}") from None
        hint = f"; {folder / PARTIAL} can be judged as it is" if (folder / PARTIAL).exists() else ""
        raise RepairError(f"{journal}: there is no such file, and a repair needs it{hint}") from None
    except OSError as error:
        raise RepairError(f"{folder}: {error.strerror or error}") from None
    except JournalError as error:
        raise RepairError(str(error)) from None
    except ValueError as error:
        raise RepairError(f"{journal}: {error}") from None
    return target, run.problems


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
