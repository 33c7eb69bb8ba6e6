# SPDX-License-Identifier: Apache-2.0
"""The one place where a process ends its job: a message, the clean-up, and the end of all ranks.

It needs the standard library alone, so that it can also tell that another import has failed. A thread watches
for signals and for steps that last too long, as Python's own handlers do not run in a blocked call of MPI.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import stat
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from aiperf_mpi import interpreter
from aiperf_mpi.exits import EXIT_FAILURE, EXIT_USAGE
from aiperf_mpi.launchers import abort_by_launcher, rank_of
from aiperf_mpi.printable import plain
from aiperf_mpi.segments import remove_segments

#: Batch systems send USR1 before the wall time and TERM at its end, a terminal sends INT. MPICH's launcher
#: relays all three, Open MPI's launcher only USR1.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)

#: Seconds after which a wait is told.
NOTICE_SECONDS = 30.0

#: Seconds that a rank other than 0 waits before it speaks: rank 0 may know the same, and ends the job.
_FIRST_SECONDS, _EACH_SECONDS, _MOST_SECONDS = 3.0, 0.02, 4.0

#: Seconds from Open MPI's SIGTERM to its SIGKILL, and some more.
_KILL_SECONDS = 1.5

#: Seconds that a process waits, before it ends the job, until the launcher has read its last output.
_READ_SECONDS = 5.0

#: Seconds that an end waits for the output folder that is being made: before its clean-up, and after it.
_MAKING_SECONDS, _LATE_SECONDS = 1.0, 2.0

#: Seconds after which a process that ends its job leaves, whatever its clean-up does.
_END_SECONDS = 6.0


class Refusal(Exception):
    """What cannot run as asked for: the text says what is wrong, where, and what to do. Exit code 2."""


@dataclass
class Process:
    """What this process tells of itself, and how it ends its job.

    Attributes:
        connected: whether MPI's initialisation has begun.
        rank: in COMM_WORLD; before MPI_Init as the launcher's variables say, None where they say nothing.
        step: what the process does now, for messages.
        abort: ends all ranks with an exit code; None until MPI is initialised.
        core: whether the core time has started.
        cleanups: what to do before an end that is before the core time, the last one first.
        lock, ender: the thread that ends this process, which alone speaks then.
        making: held while the run makes what the clean-up removes.
        cleaned: whether the clean-up has begun; who makes something later removes it.
    """

    rank: int | None = field(default_factory=rank_of)
    host: str = field(default_factory=socket.gethostname)
    step: str = "start of the program"
    abort: Callable[[int], object] | None = None
    connected: bool = False
    core: bool = False
    cleanups: list[Callable[[], object]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ender: int | None = None
    making: threading.RLock = field(default_factory=threading.RLock)
    cleaned: bool = False

    @property
    def where(self) -> str:
        """Rank and host, as each message names them."""
        return f"rank {'?' if self.rank is None else self.rank} on host {self.host}"

    def clean(self) -> None:
        """Do what is to be done before the end, once; nothing that it removes is made from now on.

        A thread that makes something now removes it itself, and this one gives it some time for that.
        """
        self.cleaned = True
        finished = self.making.acquire(timeout=_MAKING_SECONDS)
        while self.cleanups:
            try:
                self.cleanups.pop()()
            except BaseException as error:
                write_error(f"aiperf_mpi: {self.where}: clean-up: {type(error).__name__}: {_text(error)}\n")
        if not finished:
            self.making.acquire(timeout=_LATE_SECONDS)


process = Process()


# -- messages --------------------------------------------------------------------------------------


def describe(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error before the core time, and what is said of it.

    A Refusal is one line; so is an error of the operating system that names a file, and one that a missing or
    a hidden module has led to. Any other error, and any in the core time, is a traceback, and a last line
    with the step in which it happened.
    """
    if not process.core and (text := interpreter.explain(error)):
        return EXIT_USAGE, text
    if isinstance(error, Refusal) and not process.core:
        return EXIT_USAGE, str(error)
    if not process.core and isinstance(error, OSError) and error.filename is not None and error.strerror:
        path = error.filename if isinstance(error.filename, str | bytes) else str(error.filename)
        return (
            EXIT_USAGE,
            f"{process.step}: {os.fsdecode(path)}: {error.strerror}; this file or folder must "
            "exist, and its permissions and its file system must allow what the run does",
        )
    trace = "".join(traceback.format_exception(error)).rstrip()
    what = "; ".join(_text(error).split("\n")[:3])
    return (
        EXIT_FAILURE,
        f"{trace}\nstep {process.step!r}: {type(error).__name__}: {what}; all ranks end with exit code "
        f"{EXIT_FAILURE}",
    )


def _text(error: BaseException) -> str:
    """Return the text of an error, whatever its own method does."""
    try:
        return str(error)
    except Exception:
        return "an error without a text"


def lines(text: str, where: str = "") -> str:
    """Return `text` with the name of the program, and `where` if there is one, before each of its lines."""
    start = f"aiperf_mpi: {where}: " if where else "aiperf_mpi: "
    return "".join(f"{start}{plain(line)}\n" for line in text.splitlines())


def write_error(text: str) -> None:
    """Write `text` to standard error in one write, so that lines of several ranks do not mix."""
    try:
        sys.stderr.flush()
        os.write(2, text.encode(errors="replace"))
    except (OSError, ValueError, AttributeError):
        # Standard error is closed, or its reader is gone: the end must not fail for that.
        return


# -- the end ---------------------------------------------------------------------------------------


def end_job(code: int, text: str, where: str | None = None, patience: float = 0.0) -> NoReturn:
    """Print `text` with rank and host, clean up, and end all ranks with `code`; from any thread.

    Ranks other than 0 speak a little later: what all ranks know is then said by rank 0 alone. `where` is
    printed in place of rank and host, such as "" for what is not of one rank. `patience` is a time in s in
    which the launcher may end this process, which then says nothing.
    """
    take_end()
    later = min(_FIRST_SECONDS + _EACH_SECONDS * process.rank, _MOST_SECONDS) if process.rank else 0.0
    leave_after(patience + later + _END_SECONDS, code)
    if patience:
        process.clean()
        time.sleep(patience)
    time.sleep(later)
    write_error(lines(text, process.where if where is None else where))
    leave(code)


def take_end() -> None:
    """Make this thread the one that ends the process; wait for ever where another thread is that already."""
    if process.ender != threading.get_ident():
        process.lock.acquire()
        process.ender = threading.get_ident()


def stay() -> None:
    """Wait for ever where another thread ends this process, which must not go on with the job meanwhile."""
    if process.ender != threading.get_ident():
        with process.lock:
            return


def leave(code: int) -> NoReturn:
    """Clean up, and end all ranks with `code` after the launcher has read this rank's output.

    Hydra ends at once on an abort and discards what is still in the pipe: a job of hours would end without a
    message.
    """
    leave_after(_END_SECONDS, code)
    process.clean()
    remove_segments()
    until_read(1)
    until_read(2)
    _abort(code)


def _abort(code: int) -> NoReturn:
    """End all ranks: by MPI where it is initialised, else by the launcher."""
    try:
        if process.abort is not None:
            process.abort(code)
        abort_by_launcher(code, process.connected)
    finally:
        os._exit(code)


def leave_after(seconds: float, code: int) -> None:
    """Have this process leave after `seconds`, whatever it waits for then; return at once."""
    last = threading.Timer(seconds, leave_alone, (code,))
    last.daemon = True
    try:
        last.start()
    except RuntimeError:
        # The limit on threads is reached: the system ends this process then, and the launcher the others.
        signal.setitimer(signal.ITIMER_REAL, seconds)


def leave_alone(code: int) -> NoReturn:
    """End this process, whatever it waits for in MPI, and ask the launcher to end the others."""
    abort_by_launcher(code, process.connected)
    os._exit(code)


def until_read(descriptor: int) -> None:
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
            time.sleep(0.001)
    except OSError:
        # The abort that follows must not fail for any error here.
        return


# -- signals and long waits ------------------------------------------------------------------------


@dataclass
class Wait:
    """A step that this process waits in: since when, when it is told, when the job ends, and what is said."""

    since: float
    notice: float
    limit: float
    text: str
    remedy: str | Callable[[], str]
    code: int


class Watch:
    """A thread that ends the job before the core time: on a signal, and when a wait lasts too long.

    Attributes:
        signal: the name of the first signal, "" before any has come; in the core time rank 0's loop reads it.
    """

    def __init__(self) -> None:
        self.signal = ""
        self._starting = self._deferring = False
        self._tell: Callable[[int], object] | None = None
        self._wait: Wait | None = None
        self._reader = self._writer = -1
        self._before: dict[signal.Signals, Any] = {}

    def start(self) -> Watch:
        """Take the SIGNALS from now on, instead of their ending this process alone; return this watch."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._starting = True
        threading.Thread(target=self._run, name="watch", daemon=True).start()
        return self

    def defer(self) -> None:
        """Leave signals to the core time's loop from now on; wait for ever where one ends the job already."""
        with process.lock:
            self._deferring = True

    def core_time(self, tell: Callable[[int], object] | None = None) -> None:
        """End the watch: a signal is noted, its number passed to `tell`; an end leaves what was written.

        Wait for ever where this process ends already: its core time does not start then. A signal handler
        calls `tell`, once; of a signal that has come since `defer` this function does.
        """
        with process.lock:
            process.core, process.step = True, "core time"
            process.cleanups.clear()
            self._deferring = True
        self._end()
        self._tell = tell
        if tell and self.signal:
            tell(signal.Signals[self.signal])

    def stop(self) -> None:
        """End the watch of a process that starts no job, and take the handlers from before it."""
        self._end()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self) -> None:
        self._starting = False
        if self._writer >= 0:
            signal.set_wakeup_fd(-1)
            os.write(self._writer, b"\0")

    @contextmanager
    def bound(
        self, text: str, seconds: float, remedy: str | Callable[[], str], code: int = EXIT_USAGE
    ) -> Iterator[None]:
        """End the job if the block takes longer than `seconds`; rank 0 says after NOTICE_SECONDS that it
        waits."""
        now, before = time.monotonic(), self._wait
        notice = NOTICE_SECONDS if not process.rank else float("inf")
        self._wait = Wait(now, now + min(notice, seconds), now + seconds, text, remedy, code)
        try:
            yield
        finally:
            self._wait = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal = signal.Signals(number).name
            if self._tell:
                self._tell(number)

    def _run(self) -> None:
        """Look at signals and at the wait until the core time starts."""
        while self._starting:
            looked = time.monotonic()
            readable, _, _ = select.select([self._reader], [], [], 0.5)
            numbers = [number for number in os.read(self._reader, 512) if number] if readable else []
            if numbers and self._takes(lambda: self._starting and not self._deferring):
                name = signal.Signals(numbers[0]).name
                end_job(
                    EXIT_FAILURE,
                    f"{name} before the core time, in the step {process.step!r}: the run ends without a "
                    "result",
                    patience=_patience(name),
                )
            if (wait := self._wait) is not None:
                # A process that was stopped, or had no core, has not waited for others meanwhile.
                lost = max(0.0, time.monotonic() - looked - 1.0)
                wait.notice, wait.limit = wait.notice + lost, wait.limit + lost
                self._look(wait)

    def _takes(self, still: Callable[[], bool]) -> bool:
        """Make this thread the one that ends the process, if its cause still holds: the process goes on."""
        take_end()
        if still():
            return True
        process.ender = None
        process.lock.release()
        return False

    def _look(self, wait: Wait) -> None:
        """Tell a wait that is long, and end the job after one that is too long."""
        now = time.monotonic()
        if now >= wait.limit:
            if self._takes(lambda: self._wait is wait):
                remedy = wait.remedy if isinstance(wait.remedy, str) else wait.remedy()
                end_job(wait.code, f"{wait.text} for {now - wait.since:.0f} s; {remedy}")
        elif now >= wait.notice:
            text = f"{wait.text} for {now - wait.since:.0f} s; ends in {wait.limit - now:.0f} s"
            write_error(lines(text, process.where))
            wait.notice = wait.since + 2 * (wait.notice - wait.since)


def _patience(name: str) -> float:
    """Return the seconds before a signal is told: KILL follows Open MPI's TERM to the ranks that are left."""
    return _KILL_SECONDS if name == "SIGTERM" and "OMPI_COMM_WORLD_RANK" in os.environ else 0.0


watch = Watch()
