# SPDX-License-Identifier: Apache-2.0
"""From the launch to the agreed end: MPI's initialisation, the split into roles, and the two ways out.

A job ends either by a code that all ranks agreed on, or, where something raised, by `Abort`: a rank that
leaves alone lets the others hang.
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
from aiperf_mpi.parallel.launch.launcher import LaunchError, check_library, check_size, detect

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    # mpi4py's wheel brings no MPI; it looks for one when it is imported.
    raise LaunchError(
        f"Python finds no MPI library ({'; '.join(str(error).splitlines())}). Install one with pip install "
        "'aiperf_mpi[mpich]', or on a cluster load its MPI's module and install mpi4py again"
    ) from error

from aiperf_mpi.parallel.launch.collective import LOOK_SECONDS, agree

#: How long a rank that is about to end the job waits for the launcher to have read its last words, in
#: seconds.
_READ_SECONDS = 5.0

#: How long a rank that raises a LaunchError waits for the others to raise it too, in seconds.
_ALIKE_SECONDS = 20.0


class AgreedExit(SystemExit):
    """The end that all ranks agreed on; the only exit of one rank that does not abort the others."""


# -- in --------------------------------------------------------------------------------------------


def initialise() -> MPI.Intracomm:
    """COMM_WORLD after MPI's initialisation for one calling thread, with the hooks that end the job on an
    error.

    Raises LaunchError for one rank, for a launcher of another MPI, and for an MPI without funneled threads.
    """
    launcher, (library, _) = detect(), MPI.get_vendor()
    check_library(launcher, library)
    world = start_mpi()
    check_size(launcher, library, world.size)
    if MPI.Query_thread() < MPI.THREAD_FUNNELED:
        raise LaunchError(
            f"{library} was built without support for threads (MPI_THREAD_FUNNELED); load an MPI that has "
            f"it, or "
            "install the mpich or the openmpi extra of this package"
        )
    return world


def start_mpi() -> MPI.Intracomm:
    """COMM_WORLD, with MPI initialised and the hooks set, however it was launched (packing runs on one rank
    too)."""
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    faulthandler.enable()
    _install_hooks()
    _ends()
    return MPI.COMM_WORLD


@contextmanager
def job() -> Iterator[MPI.Intracomm]:
    """`with job() as world:` initialises MPI, and ends the job as a whole however the block ends.

    The block ends by `agreed_exit`. A LaunchError that all ranks raise alike prints its message once and
    exits with 2; any other exception, and a `sys.exit` of one rank, prints its traceback with rank and host
    and aborts all ranks with 5.
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
    """Prints the message on one rank and exits with 2 on all; the launcher kills the rest once a rank has
    left."""
    together = MPI.Is_initialized() and MPI.COMM_WORLD.size > 1
    speaks = MPI.COMM_WORLD.rank == 0 if together else detect().speaks
    if speaks:
        write_error(f"aiperf_mpi: {error}\n")
    if together:
        # Should only some ranks have raised it, the others never come: then this ends them too. The
        # communicator is the end's own, as the others may be in a barrier of something else.
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
    """A copy of COMM_WORLD that only the end of a job uses; made by all ranks, in `start_mpi`."""
    return MPI.COMM_WORLD.Dup()


# -- out -------------------------------------------------------------------------------------------


def agreed_exit(comm: MPI.Intracomm, code: int, clean: bool = True) -> NoReturn:
    """All ranks of `comm` (COMM_WORLD) call this; all exit with the highest of their codes (AgreedExit).

    A rank that is not `clean` has a thread inside of a library that would crash at the exit: then the job is
    ended by `Abort` with that code, all its work being done.
    """
    agreed = agree(comm, np.array([code, not clean], np.int64))
    # Either is None where the job was started with it closed.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if agreed[1]:
        if comm.rank == 0:
            write_error(
                "aiperf_mpi: all is written; a compilation that is still running is ended with the job\n"
            )
            _end_all(comm, int(agreed[0]))
        time.sleep(_ALIKE_SECONDS)
    raise AgreedExit(int(agreed[0]))


def raise_alike(comm: MPI.Intracomm, message: str | None) -> None:
    """All ranks of `comm` say what is wrong with them, or None; if anything is, all raise LaunchError with
    the lowest rank's message."""
    mine = comm.size if message is None else comm.rank
    first = int(agree(comm, np.array([mine], np.int64), MPI.MIN)[0])
    if first < comm.size:
        raise LaunchError(comm.bcast(message, root=first))


def abort(error: BaseException) -> NoReturn:
    """Prints the traceback of `error` with rank and host in one write and ends all ranks with 5."""
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
    """`Abort` with `code`, once the launcher has read what this rank said: Hydra ends at once when it hears
    of the abort, throws away what is still in the pipe, and a job of hours would end without a word."""
    _until_read(1)
    _until_read(2)
    comm.Abort(code)
    os._exit(code)


def _until_read(descriptor: int) -> None:
    """Waits until a pipe or socket has been read to its end, `_READ_SECONDS` at most; returns at once for a
    file, a terminal, what is closed, and where the system does not tell."""
    deadline = time.monotonic() + _READ_SECONDS
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return
        question = termios.FIONREAD if stat.S_ISFIFO(mode) else termios.TIOCOUTQ
        while any(fcntl.ioctl(descriptor, question, bytes(4))) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
    except OSError:
        # Whatever it is, the abort that follows must not fail for it.
        return


def _install_hooks() -> None:
    """An uncaught error outside of `job`, or in a thread, ends the job too: a rank would wait for its dead
    thread forever. That call of MPI outside of the main thread is the process's last."""

    def hook(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, BaseException) and not isinstance(args.exc_value, SystemExit):
            abort(args.exc_value)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        abort(error.with_traceback(trace))

    threading.excepthook = hook
    sys.excepthook = uncaught


def write_error(text: str) -> None:
    """`text` on standard error in one write, so that lines of several ranks do not mix."""
    sys.stderr.flush()
    os.write(2, text.encode(errors="replace"))
