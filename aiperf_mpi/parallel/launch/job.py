# SPDX-License-Identifier: Apache-2.0
"""Start and end of a job: MPI's initialisation, and the two ways out.

A job ends by an exit code that all ranks agree on, or, after an error, by `Abort`: if one rank left alone,
the others would hang.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import socket
import stat
import sys
import termios
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import NoReturn

import numpy as np

from aiperf_mpi.exits import EXIT_FAILURE, EXIT_USAGE
from aiperf_mpi.launchers import SILENT_SECONDS
from aiperf_mpi.parallel.launch.collective import LOOK_SECONDS, agree
from aiperf_mpi.parallel.launch.launcher import LaunchError, check_library, check_size, detect
from aiperf_mpi.parallel.launch.mpi import MPI

#: Seconds that a rank waits, before it ends the job, until the launcher has read its last output.
_READ_SECONDS = 5.0

#: Seconds that a rank with a LaunchError waits until the others have raised it too.
_ALIKE_SECONDS = 20.0


class AgreedExit(SystemExit):
    """An exit that all ranks agreed on; the only exit of a rank that does not abort the others."""


# -- in --------------------------------------------------------------------------------------------


def initialise() -> MPI.Intracomm:
    """Initialise MPI for calls from one thread, and install the hooks that end the job on an error.

    Return COMM_WORLD. Raises LaunchError for a single rank, for a launcher of another MPI, and for an MPI
    without funneled threads.
    """
    launcher, (library, _) = detect(), MPI.get_vendor()
    check_library(launcher, library)
    world = start_mpi()
    check_size(launcher, library, world.size)
    if MPI.Query_thread() < MPI.THREAD_FUNNELED:
        raise LaunchError(
            f"{library} was built without support for threads (MPI_THREAD_FUNNELED); load an MPI that has "
            "it, or install the mpich or the openmpi extra of this package"
        )
    return world


def start_mpi() -> MPI.Intracomm:
    """Initialise MPI and install the hooks, without the checks of the launcher; return COMM_WORLD."""
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    faulthandler.enable()
    _install_hooks()
    _ends()
    return MPI.COMM_WORLD


@contextmanager
def job() -> Iterator[MPI.Intracomm]:
    """Initialise MPI for a `with` block, and end the job on all ranks however the block ends.

    The block ends by `agreed_exit`. For a LaunchError that all ranks raise alike, print the message once and
    exit with 2. For any other exception, and for a `sys.exit` of one rank, print the traceback with rank and
    host, and abort all ranks with 5.
    """
    try:
        yield initialise()
    except AgreedExit:
        raise
    except LaunchError as error:
        _end_alike(error)
    except BaseException as error:
        abort(error)


def _end_alike(error: LaunchError) -> NoReturn:
    """Print the message on one rank and exit with 2 on all.

    The launcher kills the other ranks once one has left, so all ranks wait for the one that prints.
    """
    together = MPI.Is_initialized() and MPI.COMM_WORLD.size > 1
    speaks = MPI.COMM_WORLD.rank == 0 if together else detect().speaks
    if speaks:
        write_error(f"aiperf_mpi: {error}\n")
    if together:
        # If only some ranks have raised the error, the others never come, and this rank ends them. The
        # communicator is reserved for the end, as the others may wait in a barrier of another one.
        barrier, deadline = _ends().Ibarrier(), time.monotonic() + _ALIKE_SECONDS
        while not barrier.Test():
            if time.monotonic() > deadline:
                write_error(f"aiperf_mpi: rank {MPI.COMM_WORLD.rank} alone: {error}\n")
                _end_all(MPI.COMM_WORLD, EXIT_USAGE)
            time.sleep(LOOK_SECONDS)
    elif not speaks:
        time.sleep(SILENT_SECONDS)
    sys.exit(EXIT_USAGE)


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
    agreed = agree(comm, np.array([code, not clean], np.int64))
    # A stream is None where the job was started with it closed.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if agreed[1]:
        if comm.rank == 0:
            write_error("aiperf_mpi: the run has ended; a compilation that still runs ends with the job\n")
            _end_all(comm, int(agreed[0]))
        time.sleep(_ALIKE_SECONDS)
    raise AgreedExit(int(agreed[0]))


def raise_alike(comm: MPI.Intracomm, message: str | None) -> None:
    """Raise LaunchError on all ranks of `comm` if any rank has an error message; it has the lowest rank's
    message.

    `message` is None on a rank without an error. Collective.
    """
    mine = comm.size if message is None else comm.rank
    first = int(agree(comm, np.array([mine], np.int64), MPI.MIN)[0])
    if first < comm.size:
        raise LaunchError(comm.bcast(message, root=first))


def abort(error: BaseException) -> NoReturn:
    """Print the traceback of `error` with rank and host in one write, and end all ranks with 5."""
    where = (
        f"rank {MPI.COMM_WORLD.rank} on {socket.gethostname()}"
        if MPI.Is_initialized()
        else socket.gethostname()
    )
    if isinstance(error, KeyboardInterrupt):
        write_error(f"aiperf_mpi: {where}: interrupted; the job ends\n")
    else:
        lines = traceback.format_exception(error)
        text = "".join(f"aiperf_mpi: {where}: {line}\n" for line in "".join(lines).rstrip().split("\n"))
        write_error(f"{text}aiperf_mpi: {where}: this error ends the job with exit code {EXIT_FAILURE}\n")
    if MPI.Is_initialized() and not MPI.Is_finalized():
        _end_all(MPI.COMM_WORLD, EXIT_FAILURE)
    os._exit(EXIT_FAILURE)


def _end_all(comm: MPI.Intracomm, code: int) -> NoReturn:
    """Abort all ranks with `code`, after the launcher has read this rank's output.

    Hydra ends at once on an abort and discards what is still in the pipe: a job of hours would end without a
    message.
    """
    _until_read(1)
    _until_read(2)
    comm.Abort(code)
    os._exit(code)


def _until_read(descriptor: int) -> None:
    """Wait until a pipe or socket has been read to its end, for `_READ_SECONDS` at most.

    Return at once for a file, a terminal, a closed descriptor, and where the system cannot report it.
    """
    deadline = time.monotonic() + _READ_SECONDS
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return
        question = termios.FIONREAD if stat.S_ISFIFO(mode) else termios.TIOCOUTQ
        while any(fcntl.ioctl(descriptor, question, bytes(4))) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
    except OSError:
        # The abort that follows must not fail for any error here.
        return


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


def write_error(text: str) -> None:
    """Write `text` to standard error in one write, so that lines of several ranks do not mix."""
    sys.stderr.flush()
    os.write(2, text.encode(errors="replace"))
