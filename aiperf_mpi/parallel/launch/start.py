# SPDX-License-Identifier: Apache-2.0
"""The start of a job: MPI's initialisation, and the steps before the core time, which all ranks do together.

`together` does a step on all ranks or ends it on all: an error on one rank is held until all have done their
part, and then all raise it. Rank 0 collects a message of each rank, so it knows which ones it waits for. This
needs the standard library and mpi4py alone, so that a failed import can be told as well.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from aiperf_mpi.ending import (
    NOTICE_SECONDS,
    describe,
    end_job,
    leave,
    lines,
    process,
    stay,
    take_end,
    until_read,
    watch,
    write_error,
)
from aiperf_mpi.exits import EXIT_FAILURE
from aiperf_mpi.parallel.launch.launcher import LaunchError
from aiperf_mpi.parallel.launch.mpi import MPI

T = TypeVar("T")

#: Seconds between two tests of a request that is not complete.
LOOK_SECONDS = 0.001

#: The variables that change how long a job waits, and the seconds without them: for all ranks in MPI_Init and
#: in each step of the start, and for the data and the devices.
INIT_VARIABLE, INIT_SECONDS = "AIPERF_MPI_INIT_SECONDS", 300.0
DATA_VARIABLE, DATA_SECONDS = "AIPERF_MPI_DATA_SECONDS", 3600.0

#: Seconds that rank 0 waits for the others after one of them has failed, and that a rank which has failed
#: waits for rank 0, which may be in a collective call that this rank has left.
_GRACE_SECONDS, _ALONE_SECONDS = 2.0, 3.5

#: Beginnings of the variables by which a user chooses MPI's network.
_NETWORK = ("UCX_", "FI_", "OMPI_MCA_", "PSM2_", "PSM3_", "MPIR_CVAR_")

#: Seconds that the others wait longer than rank 0, which can name the rank that is missing.
_LONGER_SECONDS = 20.0


class AgreedError(LaunchError):
    """A step was refused or has failed on any rank; all ranks raise it alike, with the exit code of all."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step on one rank: exit code 0, 2 or 5, what is said of it, and a value for rank 0."""

    code: int = 0
    text: str = ""
    value: Any = None


@dataclass
class _Line:
    """The communicator of the steps, their number, and each rank's host and process, as far as known."""

    comm: MPI.Intracomm
    steps: int = 0
    hosts: dict[int, str] = field(default_factory=dict)
    processes: dict[int, int] = field(default_factory=dict)


def wait(request: MPI.Request) -> None:
    """Wait until a request is complete; sleep a millisecond between two tests."""
    while not request.Test():
        time.sleep(LOOK_SECONDS)


def seconds_of(variable: str, default: float, environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds in an environment variable; `default` where it is not set.

    Raises LaunchError where it is not a positive number.
    """
    text = environ.get(variable, "")
    try:
        seconds = float(text) if text else default
        if not seconds > 0:
            raise ValueError
    except ValueError:
        raise LaunchError(
            f"environment variable {variable}: {text!r} is not a positive number of seconds; correct it, or "
            "leave it unset"
        ) from None
    return seconds


# -- MPI_Init --------------------------------------------------------------------------------------


def initialise_mpi() -> MPI.Intracomm:
    """Initialise MPI for calls from one thread, with a bound on the wait for the other ranks.

    Return COMM_WORLD. mpi4py's own call holds Python's lock, so that no thread could bound it.
    """
    if not MPI.Is_initialized():
        process.step, process.connected = "MPI_Init", True
        with watch.bound(
            "waits in MPI_Init for the other ranks",
            seconds_of(INIT_VARIABLE, INIT_SECONDS) + (_ALONE_SECONDS if process.rank else 0.0),
            "look for a host that is slow, stopped or not reachable, and for a rank that did not start; "
            f"{INIT_VARIABLE}=SECONDS allows more",
        ):
            library, provided = ctypes.CDLL(MPI.__file__), ctypes.c_int()
            with _told_if_it_exits():
                error = library.MPI_Init_thread(None, None, MPI.THREAD_FUNNELED, ctypes.byref(provided))
        if error != MPI.SUCCESS:
            raise LaunchError(f"MPI_Init failed with error {error}; the MPI library's own lines say why")

        # As mpi4py does in its own call: an error of MPI is an exception, not the end of the job.
        for comm in (MPI.COMM_SELF, MPI.COMM_WORLD):
            comm.Set_errhandler(MPI.ERRORS_RETURN)
    process.rank = MPI.COMM_WORLD.rank
    process.abort = MPI.COMM_WORLD.Abort
    line()
    return MPI.COMM_WORLD


@contextmanager
def _told_if_it_exits() -> Iterator[None]:
    """Say on which rank MPI ends this process in the block: it calls C's `exit`, and no Python runs any more.

    What is registered is removed after the block, as Python is gone at the end of a good run.
    """
    ended, key, libc = [True], ctypes.c_int(), ctypes.CDLL(None)
    chosen = sorted(name for name in os.environ if name.startswith(_NETWORK))
    remedy = f"unset or correct {', '.join(chosen)[:400]}" if chosen else "look at its lines above"

    def tell(_: object) -> None:
        if ended:
            write_error(lines(f"MPI_Init has ended this process; {remedy}", process.where))
            until_read(2)

    told = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(tell)
    libc["__cxa_atexit"](told, None, ctypes.byref(key))
    try:
        yield
    finally:
        ended.clear()
        libc["__cxa_finalize"](ctypes.byref(key))


@cache
def line() -> _Line:
    """Return what the steps of this process share; all ranks make it when MPI is initialised."""
    return _Line(MPI.COMM_WORLD.Dup())


# -- steps of all ranks ----------------------------------------------------------------------------


def together(step: str, function: Callable[[], T], seconds: float | None = None) -> T:
    """Do a step of the start on all ranks; return this rank's result after all have done theirs. Collective.

    Arguments:
        step: what is done, for messages.
        function: this rank's part; it may be collective itself.
        seconds: that rank 0 waits for the other ranks, by default those of MPI_Init.

    Raises AgreedError on all ranks, if any rank refused or failed.
    """
    process.step, result = step, None
    seconds = seconds or seconds_of(INIT_VARIABLE, INIT_SECONDS)
    try:
        with watch.bound(f"is in the step {step!r}", seconds + 2 * _LONGER_SECONDS, _remedy, EXIT_FAILURE):
            result, outcome = function(), Outcome()
    except AgreedError:
        raise
    except Exception as error:
        outcome = Outcome(*describe(error))
    exchange(step, outcome, seconds)
    return result  # type: ignore[return-value]  # where `function` has raised, all ranks have raised


@contextmanager
def step(name: str, alone: bool = False) -> Iterator[None]:
    """Name a step that is collective in itself, for messages, and bound it. An error in it is of one rank.

    All ranks begin it together, so that rank 0 can name one that does not come, and the others rank 0; a step
    that one rank does `alone` begins at once.
    """
    process.step = name
    seconds = seconds_of(INIT_VARIABLE, INIT_SECONDS)
    if not alone:
        exchange(name, Outcome(), seconds)
    with watch.bound(f"is in the step {name!r}", seconds, _remedy, EXIT_FAILURE):
        yield


def _remedy() -> str:
    """Return what to do about a collective step that does not end: name the stopped ranks of this host.

    No call of MPI can tell them, as the main thread is in one. Other hosts cannot be seen.
    """
    here = line()
    found = [rank for rank in sorted(here.processes) if here.hosts[rank] == process.host]
    found = [rank for rank in found if _is_stopped(here.processes[rank])]
    if found:
        numbers = ", ".join(str(here.processes[rank]) for rank in found)
        return f"stopped: {names_of(found, here.hosts)}; kill -CONT {numbers} lets it go on, or end the job"
    return "look for a rank or a host that is stopped, or a file system that does not answer"


def _is_stopped(number: int) -> bool:
    """Whether a process of this host runs the same program and is stopped, as far as the system tells."""
    try:
        # In another name space of processes, the number may be that of another program.
        same = os.readlink(f"/proc/{number}/exe") == os.readlink("/proc/self/exe")
        with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return same and state in "Tt"


def share(step: str, function: Callable[[], str]) -> str:
    """Return on all ranks what rank 0's function returns; raises AgreedError where it fails. Collective."""
    process.step, text, outcome = step, "", Outcome()
    seconds = seconds_of(INIT_VARIABLE, INIT_SECONDS)
    if not line().comm.rank:
        with watch.bound(f"is in the step {step!r}", seconds, "look for a slow file system", EXIT_FAILURE):
            try:
                text = function()
            except Exception as error:
                outcome = Outcome(*describe(error))
    return exchange(step, outcome, seconds, text)[0]


def exchange(
    step: str, outcome: Outcome, seconds: float, share: str = "", named: bool = True
) -> tuple[str, dict[int, Any]]:
    """Compare the outcomes of a step on all ranks. Collective. `named` adds rank and host to what is said.

    Return rank 0's text `share`, and on rank 0 the values of all ranks. Raises AgreedError on all
    ranks, with the text of the lowest rank whose outcome is an error.
    """
    stay()
    here = line()
    here.steps += 1
    if here.comm.rank:
        code, text = _report(here, outcome, seconds)
        values: dict[int, Any] = {}
    else:
        outcomes = _collect(here, step, outcome, seconds)
        code, text = _judge(outcomes, here, named)
        values = {rank: one.value for rank, one in outcomes.items()}
        _tell(here, code, text or share)
        text = text or share
    if code:
        raise AgreedError(code, text)
    return text, values


def _report(here: _Line, outcome: Outcome, seconds: float) -> tuple[int, str]:
    """Send this rank's outcome to rank 0; return the code and the text of all."""
    data = json.dumps([process.host, os.getpid(), outcome.code, outcome.text, outcome.value]).encode()
    sent = here.comm.Isend([data, len(data), MPI.BYTE], 0, here.steps % 1000)
    head = array("q", [0] * 4)
    request = here.comm.Ibcast([head, 4, MPI.INT64_T], 0)
    looked = time.monotonic()
    limit = looked + (_ALONE_SECONDS if outcome.code else seconds + _LONGER_SECONDS)
    while not request.Test():
        sent.Test()
        limit, looked = limit + time_lost(looked), time.monotonic()
        if time.monotonic() > limit:
            if outcome.code:
                end_job(outcome.code, outcome.text)
            end_job(
                EXIT_FAILURE,
                f"rank 0 has not answered for {seconds + _LONGER_SECONDS:.0f} s, in the step "
                f"{process.step!r}; look whether its host is stopped or overloaded",
            )
        time.sleep(LOOK_SECONDS)
    wait(sent)
    code, size, number, host = head
    if host == _host_number():
        here.hosts[0], here.processes[0] = process.host, number
    if not size:
        return code, ""
    body = bytearray(size)
    wait(here.comm.Ibcast([body, size, MPI.BYTE], 0))
    return code, body.decode()


def time_lost(looked: float) -> float:
    """Return the seconds since `looked`, less one for a turn: a process that was stopped has not waited."""
    return max(0.0, time.monotonic() - looked - 1.0)


def _tell(here: _Line, code: int, text: str) -> None:
    """Send the code and the text of all from rank 0 to the other ranks, and its process and host."""
    body = text.encode()
    head = array("q", [code, len(body), os.getpid(), _host_number()])
    wait(here.comm.Ibcast([head, 4, MPI.INT64_T], 0))
    if body:
        wait(here.comm.Ibcast([body, len(body), MPI.BYTE], 0))


def _host_number() -> int:
    """Return a number that differs between hosts."""
    return zlib.crc32(process.host.encode(errors="replace"))


def _collect(here: _Line, step: str, mine: Outcome, seconds: float) -> dict[int, Outcome]:
    """Return the outcomes of all ranks, on rank 0.

    Say after NOTICE_SECONDS which ranks have not come, and end the job after `seconds`, or soon after one
    rank has failed.
    """
    outcomes, status = {0: mine}, MPI.Status()
    begun = looked = time.monotonic()
    notice, failed_at = NOTICE_SECONDS, begun if mine.code else None
    while len(outcomes) < here.comm.size:
        while here.comm.Iprobe(MPI.ANY_SOURCE, here.steps % 1000, status):
            size = status.Get_count(MPI.BYTE)
            data = bytearray(size)
            here.comm.Recv([data, size, MPI.BYTE], status.Get_source(), status.Get_tag())
            rank = status.Get_source()
            here.hosts[rank], here.processes[rank], *rest = json.loads(bytes(data))
            outcomes[rank] = Outcome(*rest)
            if outcomes[rank].code and failed_at is None:
                failed_at = time.monotonic()
        begun, now = begun + time_lost(looked), time.monotonic()
        looked = now
        if failed_at is not None and now - failed_at > _GRACE_SECONDS and len(outcomes) < here.comm.size:
            code, text = _judge(outcomes, here)
            take_end()
            write_error(lines(text))
            leave(code)
        if now - begun > min(notice, seconds):
            absent = [rank for rank in range(here.comm.size) if rank not in outcomes]
            names = names_of(absent, here.hosts)
            if now - begun > seconds:
                end_job(
                    EXIT_FAILURE,
                    f"the step {step!r} is not finished after {seconds:.0f} s on {names}; look at that "
                    "process: it may be stopped, wait for a file system, or lack memory (ulimit -v, the "
                    f"job's memory); {INIT_VARIABLE} and {DATA_VARIABLE} set the seconds",
                )
            write_error(
                lines(
                    f"waits for {names} in the step {step!r}, since {now - begun:.0f} s; ends after "
                    f"{seconds:.0f} s",
                    process.where,
                )
            )
            notice *= 2
        time.sleep(LOOK_SECONDS)
    return outcomes


def _judge(outcomes: Mapping[int, Outcome], here: _Line, named: bool = True) -> tuple[int, str]:
    """Return the exit code of all ranks, and what is said: by the lowest rank that refused or failed.

    What all ranks say is said without rank and host.
    """
    failing = sorted(rank for rank, outcome in outcomes.items() if outcome.code)
    if not failing:
        return 0, ""
    first = outcomes[failing[0]]
    alike = [rank for rank in failing if outcomes[rank].text == first.text]
    if len(alike) == here.comm.size or not named:
        return first.code, first.text
    host = here.hosts.get(failing[0], process.host)
    more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
    where = f"rank {failing[0]} on host {host}{more}: "
    return first.code, "\n".join(where + line for line in first.text.splitlines())


def names_of(ranks: Sequence[int], hosts: Mapping[int, str]) -> str:
    """Return the names of ranks and their hosts for a message, at most eight of them."""
    shown = [f"rank {rank}" + (f" on {hosts[rank]}" if rank in hosts else "") for rank in ranks[:8]]
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return ", ".join(shown) + more
