# SPDX-License-Identifier: Apache-2.0
"""Start and end of a job: MPI's initialisation, what was held until then, and the two ways out.

A job ends by an exit code that all ranks agree on, or, after an error, by `Abort`: if one rank left alone,
the others would hang. This needs the standard library and mpi4py alone.
"""

from __future__ import annotations

import faulthandler
import shlex
import sys
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import NoReturn

from aiperf_mpi.ending import describe, end_job, leave, leave_after, lines, process, take_end, write_error
from aiperf_mpi.exits import EXIT_USAGE
from aiperf_mpi.parallel.launch.launcher import LaunchError, check_library, check_size, detect
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.launch.start import (
    INIT_SECONDS,
    INIT_VARIABLE,
    LOOK_SECONDS,
    AgreedError,
    Outcome,
    exchange,
    initialise_mpi,
    line,
    seconds_of,
    wait,
)

__all__ = ["MPI", "AgreedExit", "abort", "agreed_exit", "job", "raise_alike", "start_mpi", "write_error"]

#: Seconds that a rank with a LaunchError waits until the others have raised it too.
_ALIKE_SECONDS = 5.0

#: Seconds that Python and MPI have to end after all ranks have agreed on it, and that a rank with a
#: LaunchError has in all, whatever its clean-up waits for.
_EXIT_SECONDS, _LAST_SECONDS = 5.0, 12.0

#: Most characters of a command line in a message.
_SHOWN = 300


class AgreedExit(SystemExit):
    """An exit that all ranks agreed on; the only exit of a rank that does not abort the others."""


# -- in --------------------------------------------------------------------------------------------


def initialise(held: tuple[int, str] | None = None, words: Sequence[str] = ()) -> MPI.Intracomm:
    """Initialise MPI for calls from one thread, and install the hooks that end the job on an error.

    Arguments:
        held: exit code and text of an error of this rank before MPI's initialisation; all ranks raise it.
        words: this rank's arguments, which must be those of rank 0.

    Return COMM_WORLD. Raises LaunchError for a single rank, for a launcher of another MPI, for an MPI without
    funneled threads, and where a rank holds an error or has other arguments.
    """
    launcher, (library, _) = detect(), MPI.get_vendor()
    check_library(launcher, library)
    world = start_mpi()
    if held is not None and world.size == 1 and launcher.size in (None, 1):
        raise AgreedError(*held)  # a job script has a rank's variables too, though no launcher is used
    if world.size == 1:
        check_size(launcher, library, world.size)
    if MPI.Query_thread() < MPI.THREAD_FUNNELED:
        raise LaunchError(
            f"{library} was built without support for threads (MPI_THREAD_FUNNELED); load an MPI that has "
            "it, or install the mpich or the openmpi extra of this package"
        )
    outcome = Outcome(value=list(words)) if held is None else Outcome(*held)
    process.step = "arguments"
    _, values = exchange(process.step, outcome, seconds_of(INIT_VARIABLE, INIT_SECONDS))
    other = next((rank for rank in range(len(values)) if values[rank] != values[0]), None)
    problem = None
    if other is not None:
        theirs, ours = (shlex.join(values[rank])[:_SHOWN] for rank in (other, 0))
        problem = (
            f"rank {other} on host {line().hosts[other]} has the arguments '{theirs}', but rank 0 has "
            f"'{ours}': start all ranks with the same arguments"
        )
    check_size(launcher, library, world.size)
    raise_alike(world, problem)
    return world


def start_mpi() -> MPI.Intracomm:
    """Initialise MPI and install the hooks, without the checks of the launcher; return COMM_WORLD."""
    initialise_mpi()
    faulthandler.enable()
    _install_hooks()
    _ends()
    return MPI.COMM_WORLD


@contextmanager
def job(held: tuple[int, str] | None = None, words: Sequence[str] = ()) -> Iterator[MPI.Intracomm]:
    """Initialise MPI for a `with` block, and end the job on all ranks however the block ends.

    The block ends by `agreed_exit`. For a LaunchError that all ranks raise alike, print the message once and
    exit with 2, or with the code of an AgreedError. For any other exception, and for a `sys.exit` of one
    rank, print the traceback with rank and host, and abort all ranks. `held` and `words` are those of
    `initialise`.
    """
    try:
        yield initialise(held, words)
    except AgreedExit:
        raise
    except LaunchError as error:
        # What all ranks agree on has the held error already.
        alike = held is None or isinstance(error, AgreedError)
        _end_alike(error if alike else AgreedError(*_joined(held, error)))
    except BaseException as error:
        end_job(*_joined(held, error))


def _joined(held: tuple[int, str] | None, error: BaseException) -> tuple[int, str]:
    """Return exit code and text of an error, after those that this rank holds since before MPI."""
    code, text = describe(error)
    return (code, text) if held is None else (held[0], f"{held[1]}\n{text}")


def _end_alike(error: LaunchError) -> NoReturn:
    """Print the message on one rank, and exit on all with the code of the error.

    The launcher kills the other ranks once one has left, so all ranks wait for the one that prints.
    """
    code = error.code if isinstance(error, AgreedError) else EXIT_USAGE
    alone = MPI.Is_initialized() and MPI.COMM_WORLD.size == 1
    if not MPI.Is_initialized() or (alone and detect().size not in (None, 1)):
        end_job(code, str(error), where=None if process.rank else "")
    take_end()
    leave_after(_LAST_SECONDS, code)
    if MPI.COMM_WORLD.rank == 0:
        write_error(lines(str(error)))
    process.clean()

    # If only some ranks have raised the error, the others never come, and this rank ends them. The
    # communicator is reserved for the end, as the others may wait in a barrier of another one.
    barrier, deadline = _ends().Ibarrier(), time.monotonic() + _ALIKE_SECONDS
    while not barrier.Test():
        if time.monotonic() > deadline:
            end_job(code, f"alone: {error}")
        time.sleep(LOOK_SECONDS)
    leave_after(_EXIT_SECONDS, code)  # a library may wait at the exit
    sys.exit(code)


@cache
def _ends() -> MPI.Intracomm:
    """Return a copy of COMM_WORLD that only the end of a job uses; all ranks make it in `start_mpi`."""
    return MPI.COMM_WORLD.Dup()


# -- out -------------------------------------------------------------------------------------------


def agreed_exit(comm: MPI.Intracomm, code: int, clean: bool = True) -> NoReturn:
    """Exit with the highest code of all ranks of `comm` (COMM_WORLD), by AgreedExit. Collective.

    A rank that is not `clean` has a thread in a library that would crash at the exit. The job then ends by
    `Abort` with that code, after all its work is done.
    """
    mine, agreed = array("q", [code, not clean]), array("q", [0, 0])
    wait(comm.Iallreduce([mine, 2, MPI.INT64_T], [agreed, 2, MPI.INT64_T], MPI.MAX))
    # A stream is None where the job was started with it closed.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if agreed[1]:
        if comm.rank == 0:
            write_error("aiperf_mpi: the run has ended; a compilation that still runs ends with the job\n")
            leave(agreed[0])
        time.sleep(4 * _ALIKE_SECONDS)
    raise AgreedExit(agreed[0])


def raise_alike(comm: MPI.Intracomm, message: str | None) -> None:
    """Raise LaunchError on all ranks if any rank has an error message; it has the lowest rank's message.

    `message` is None on a rank without an error. Collective over `comm`, which has all ranks.
    """
    outcome = Outcome() if message is None else Outcome(EXIT_USAGE, message)
    exchange(process.step, outcome, seconds_of(INIT_VARIABLE, INIT_SECONDS), named=False)


def abort(error: BaseException) -> NoReturn:
    """Print `error` with rank and host in one write, and end all ranks with its exit code."""
    end_job(*describe(error))


def _install_hooks() -> None:
    """Make an uncaught error outside of `job`, or in a thread, end the job.

    Without that, a rank would wait forever for its dead thread. The `Abort` is the only call of MPI outside
    of the main thread, and the last of the process.
    """

    def hook(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, BaseException) and not isinstance(args.exc_value, SystemExit):
            abort(args.exc_value)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        abort(error.with_traceback(trace))

    threading.excepthook = hook
    sys.excepthook = uncaught
