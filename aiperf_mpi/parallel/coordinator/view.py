# SPDX-License-Identifier: Apache-2.0
"""The view of a running benchmark: a live table on a terminal, plain lines in a batch log.

Only rank 0 has a view, on stderr; the verdict goes to stdout. Plain lines have a time stamp and come at most
once a second, however much happens. Neither mode starts a thread: the output changes in `update` and `log`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aiperf_mpi.launchers import RANK_VARIABLES
from aiperf_mpi.opcount.rates import ops_text
from aiperf_mpi.printable import counted, plain

MODES = ("auto", "live", "plain")

#: Least seconds between two plain lines, and between two pictures of the live view.
_LINE_SECONDS, _PICTURE_SECONDS = 1.0, 0.25

#: Plain lines of status: their number in a run, and the most seconds between two of them.
_STATUS_LINES, _STATUS_SECONDS = 20, 60.0

#: Most events in a plain line, and most candidates and events in the live view.
_EVENTS_PER_LINE, _CANDIDATES, _EVENTS = 4, 6, 3


@dataclass(frozen=True, slots=True)
class ViewSnapshot:
    """The state of a run that a view shows.

    Attributes:
        elapsed, time_limit: seconds of the core phase.
        replicas, busy: number of all replicas, and of those that train now.
        trials, failed: trials that ended, and how many of them failed.
        best_error: smallest validation error, as a fraction; None before the first validation.
        rate: credited operations per second since core start.
        candidates: lines about the last candidates, newest last.
        phase: "training" or "ending".
    """

    elapsed: float
    time_limit: float
    replicas: int = 0
    busy: int = 0
    trials: int = 0
    failed: int = 0
    best_error: float | None = None
    rate: float = 0.0
    candidates: tuple[str, ...] = ()
    phase: str = "training"


def resolve_mode(mode: str, stream: TextIO, environ: Mapping[str, str] = os.environ) -> str:
    """Return `live` or `plain` for a mode of MODES: `auto` is live without a launcher on a terminal.

    A terminal is a stream with isatty and a TERM other than `dumb`.

    Under a launcher isatty proves nothing: some give a rank a terminal that no person sees, others pass on
    the output of a real one. Raises ValueError for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"view {mode!r} is not one of {', '.join(MODES)}")
    if mode != "auto":
        return mode
    launched = any(name in environ for name in RANK_VARIABLES)
    return "live" if stream.isatty() and not launched and environ.get("TERM", "dumb") != "dumb" else "plain"


class View:
    """Show a run on `stream`: `update` takes a new state, as often as is convenient, `log` an event.

    Arguments:
        mode: one of MODES.
        stream: where to write, rank 0's stderr.
        environ: the environment, from which the mode and the size of the terminal follow.
        clock, wall_clock: seconds that never go back, and seconds since 1970 for the time stamps.
    """

    def __init__(
        self,
        mode: str,
        stream: TextIO,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.mode = resolve_mode(mode, stream, environ)
        self._stream, self._clock, self._wall_clock = stream, clock, wall_clock
        self._events: deque[str] = deque()
        self._snapshot: ViewSnapshot | None = None
        self._last_line = self._last_status = self._last_picture = float("-inf")
        self._live: Live | None = None
        if self.mode == "live":
            # Force a terminal: under a launcher the stream is a pipe, and the user asked for the live view.
            size = environ.get("COLUMNS", ""), environ.get("LINES", "")
            width, height = (int(number) if number.isdigit() else None for number in size)
            term = environ.get("TERM", "dumb")
            console = Console(
                file=stream,
                force_terminal=True,
                width=width,
                height=height,
                _environ={**environ, "TERM": "xterm-256color" if term == "dumb" else term},
            )
            self._live = Live(
                console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()

    def update(self, snapshot: ViewSnapshot) -> None:
        """Take a new state, and show it unless the last output is too recent."""
        self._snapshot = snapshot
        if self._live is not None:
            self._draw(force=False)
        else:
            self._write_line()

    def log(self, line: str) -> None:
        """Show an event: at once in the live view; in plain mode with the next line, within a second."""
        self._events.append(plain(" ".join(line.split())))
        if self._live is not None:
            while len(self._events) > _EVENTS:
                self._events.popleft()
            self._draw(force=True)
        else:
            self._write_line()

    def trial(self, line: str) -> None:
        """Show how a trial ended, as an event in plain mode; the live view has it in its state."""
        if self._live is None:
            self.log(line)

    def close(self) -> None:
        """Show the last events and restore the terminal; closing twice is allowed."""
        if self._live is not None:
            self._draw(force=True)
            self._live.stop()
            self._live = None
            self._events.clear()
        elif self._events:
            self._write(self._take_events())

    # -- plain lines -------------------------------------------------------------------------------

    def _write_line(self) -> None:
        """Write a line of waiting events, or else of the status, at most once a second."""
        now = self._clock()
        if now - self._last_line < _LINE_SECONDS:
            return
        snapshot = self._snapshot
        if self._events:
            self._write(self._take_events())
        elif snapshot is not None:
            every = min(_STATUS_SECONDS, max(_LINE_SECONDS, snapshot.time_limit / _STATUS_LINES))
            if now - self._last_status >= every:
                self._last_status = now
                self._write(status_line(snapshot))

    def _take_events(self) -> str:
        """Return the waiting events as one line, and remove them.

        Of many events the line has the first ones, the number of those left out, and the last one. The last
        one may be the reason why the run ends.
        """
        *events, last = self._events
        self._events.clear()
        shown, more = events[: _EVENTS_PER_LINE - 1], len(events) - (_EVENTS_PER_LINE - 1)
        return "; ".join([*shown, *([f"{more} more events"] if more > 0 else []), last])

    def _write(self, text: str) -> None:
        self._last_line = self._clock()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._wall_clock()))
        self._stream.write(f"{stamp} aiperf_mpi: {text}\n")
        self._stream.flush()

    # -- the live view -----------------------------------------------------------------------------

    def _draw(self, force: bool) -> None:
        now = self._clock()
        if self._live is None or (not force and now - self._last_picture < _PICTURE_SECONDS):
            return
        self._last_picture = now
        self._live.update(_picture(self._snapshot, tuple(self._events)), refresh=True)


def status_line(snapshot: ViewSnapshot) -> str:
    """Return the state of a run as one line."""
    left = _left(snapshot)
    busy = f"{snapshot.busy} of {counted(snapshot.replicas, 'replica')} busy"
    if snapshot.phase == "ending":
        busy = "waits for validations and for compilations, which cannot be cancelled"
    return (
        f"{snapshot.phase}{f', {left}' if left else ''}, "
        f"{busy}, {_trials(snapshot)}, "
        f"best error {_error(snapshot)}, {ops_text(snapshot.rate)}"
    )


def format_time(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss; negative ones as 0:00."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _trials(snapshot: ViewSnapshot) -> str:
    failed = f" ({snapshot.failed} failed)" if snapshot.failed else ""
    return f"{counted(snapshot.trials, 'trial')} done{failed}"


def _left(snapshot: ViewSnapshot) -> str:
    """Return the core time that is left; after the end of the core time, also by a drain, there is none."""
    if snapshot.phase != "training":
        return ""
    return f"{format_time(snapshot.time_limit - snapshot.elapsed)} left"


def _error(snapshot: ViewSnapshot) -> str:
    return "-" if snapshot.best_error is None else f"{snapshot.best_error:.4f}"


def _picture(snapshot: ViewSnapshot | None, events: tuple[str, ...]) -> Group:
    parts: list[Table | Text] = [Text("aiperf_mpi", style="bold")]
    if snapshot is not None:
        share = min(1.0, snapshot.elapsed / snapshot.time_limit)
        bar = Table.grid()
        bar.add_row(ProgressBar(total=1.0, completed=share, width=60))
        numbers = Table.grid(padding=(0, 2))
        for name, value in (
            (snapshot.phase, _left(snapshot)),
            ("replicas busy", f"{snapshot.busy} of {snapshot.replicas}"),
            ("trials", _trials(snapshot)),
            ("best error", _error(snapshot)),
            ("operations", f"{ops_text(snapshot.rate)} since the start"),
        ):
            numbers.add_row(Text(name, style="dim"), Text(value))
        parts += [bar, numbers]
        parts += [
            Text(f"  {line}", no_wrap=True, overflow="ellipsis")
            for line in snapshot.candidates[-_CANDIDATES:]
        ]
    parts += [Text(line, style="yellow", no_wrap=True, overflow="ellipsis") for line in events]
    return Group(*parts)
