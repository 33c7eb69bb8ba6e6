# SPDX-License-Identifier: Apache-2.0
"""The view of a running benchmark: a live table on a terminal, plain lines in a batch log.

Only rank 0 has a view, on stderr; the verdict goes to stdout. Both modes show what each replica does. Of many
replicas they show how many are in each phase, and the slowest. Plain lines have a time stamp and are written
at most once a second, however much happens. Neither mode starts a thread: the output changes in `update` and
`log`.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter, deque
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
from aiperf_mpi.parallel.shared.status import NO_TRIAL, RETIRED, ReplicaStatus
from aiperf_mpi.printable import counted, plain

MODES = ("auto", "live", "plain")

#: Least seconds between two plain lines, and between two pictures of the live view.
_LINE_SECONDS, _PICTURE_SECONDS = 1.0, 0.25

#: Plain lines of status: their number in a run, and the most seconds between two of them.
_STATUS_LINES, _STATUS_SECONDS = 20, 60.0

#: Seconds between two writes of plain lines on what replicas do, so that a change is in the log within 2 s;
#: of more replicas than MOST_LINES, the share that must have changed their phase.
_CHANGE_SECONDS, _CHANGE_SHARE = 1.5, 0.05

#: Most events in a plain line, and most candidates and events in the live view.
_EVENTS_PER_LINE, _CANDIDATES, _EVENTS = 4, 6, 3

#: Most replicas that have a line each; of more of them, how many of the slowest have one.
MOST_LINES, SLOWEST = 8, 3


@dataclass(frozen=True, slots=True)
class ReplicaLine:
    """What a replica does, and its rate in op/s; None where it has none at the moment."""

    status: ReplicaStatus
    rate: float | None = None

    def __str__(self) -> str:
        status = self.status
        if status.trial_id == RETIRED:
            return f"replica {status.replica}: has retired"
        if status.trial_id == NO_TRIAL:
            why = "waits for a candidate" if status.phase == "idle" else "between two trials"
            return f"replica {status.replica}: {status.phase}, {why}"
        words = [f"trial {status.trial_id}", status.phase]
        if status.trains:
            words.append(f"epoch {status.epoch + 1} of {status.epochs_max}")
            words += [] if math.isnan(status.loss) else [f"loss {status.loss:.4f}"]
        words += [] if self.rate is None else [ops_text(self.rate)]
        return f"replica {status.replica}: {', '.join(words)}"


@dataclass(frozen=True, slots=True)
class ViewSnapshot:
    """The state of a run that a view shows.

    Attributes:
        elapsed, time_limit: seconds of the core phase.
        replicas, busy: number of all replicas, and of those that train now.
        trials, failed: trials that ended, and how many of them failed.
        best_error: smallest validation error, as a fraction; None before the first validation.
        rate: operations per second since core start. Epochs that still run are counted by their steps; they
            are credit only when they have ended.
        candidates: lines about the last candidates, newest last.
        phase: "training" or "ending".
        under_way: share of the operations that belongs to epochs that still run.
        present: operations per second in the last seconds; None after the end.
        phases: number of replicas in each phase, the most first.
        lines: what each replica does; of more than MOST_LINES replicas the slowest.
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
    under_way: float = 0.0
    present: float | None = None
    phases: tuple[tuple[str, int], ...] = ()
    lines: tuple[ReplicaLine, ...] = ()


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
        self._last_line = self._last_status = self._last_picture = self._last_change = float("-inf")
        self._changes: dict[int, tuple[int, str, int]] = {}
        self._phases: Counter[str] = Counter()
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
        """Write waiting events, or else the status, and what replicas have changed to, at most once a
        second."""
        now = self._clock()
        if now - self._last_line < _LINE_SECONDS:
            return
        snapshot, lines = self._snapshot, list[str]()
        if self._events:
            lines.append(self._take_events())
        elif snapshot is not None:
            every = min(_STATUS_SECONDS, max(_LINE_SECONDS, snapshot.time_limit / _STATUS_LINES))
            if now - self._last_status >= every:
                self._last_status = now
                lines.append(status_line(snapshot))
        if snapshot is not None and now - self._last_change >= _CHANGE_SECONDS:
            changed = self._take_changes(snapshot)
            self._last_change = now if changed else self._last_change
            lines += changed
        if lines:
            self._write(*lines)

    def _take_changes(self, snapshot: ViewSnapshot) -> list[str]:
        """Return what replicas do that has changed: a line for each, or of many replicas their phases."""
        if snapshot.replicas > MOST_LINES:
            phases = Counter(dict(snapshot.phases))
            changed = (phases - self._phases).total()
            if changed <= _CHANGE_SHARE * snapshot.replicas:
                return []
            self._phases = phases
            return many_lines(snapshot)
        before, self._changes = (
            self._changes,
            {line.status.replica: line.status.change for line in snapshot.lines},
        )
        return [str(line) for line in snapshot.lines if before.get(line.status.replica) != line.status.change]

    def _take_events(self) -> str:
        """Return the waiting events as one line, and remove them.

        Of many events the line has the first ones, the number of those left out, and the last one. The last
        one may be the reason why the run ends.
        """
        *events, last = self._events
        self._events.clear()
        shown, more = events[: _EVENTS_PER_LINE - 1], len(events) - (_EVENTS_PER_LINE - 1)
        return "; ".join([*shown, *([f"{more} more events"] if more > 0 else []), last])

    def _write(self, *lines: str) -> None:
        self._last_line = self._clock()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._wall_clock()))
        self._stream.write("".join(f"{stamp} aiperf_mpi: {line}\n" for line in lines))
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
        f"best error {_error(snapshot)}, {_rates(snapshot)}"
    )


def many_lines(snapshot: ViewSnapshot) -> list[str]:
    """Return how many replicas are in each phase, and the slowest of those that train, as lines."""
    counts = ", ".join(f"{count} {phase}" for phase, count in snapshot.phases)
    lines = [f"replicas: {counts}"] if counts else []
    return lines + [f"slowest: {line}" for line in snapshot.lines]


def _rates(snapshot: ViewSnapshot) -> str:
    """Return the rates of the last seconds and since the start, with the share that does not count yet."""
    now = "" if snapshot.present is None else f"now {ops_text(snapshot.present)}, "
    share = f" ({snapshot.under_way:.0%} in running epochs, by steps)" if snapshot.under_way >= 0.005 else ""
    return f"{now}{ops_text(snapshot.rate)} since the start{share}"


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
            ("operations", _rates(snapshot)),
        ):
            numbers.add_row(Text(name, style="dim"), Text(value))
        parts += [bar, numbers]
        many = snapshot.replicas > MOST_LINES
        replicas = many_lines(snapshot) if many else [str(line) for line in snapshot.lines]
        parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in replicas]
        parts += [
            Text(f"  {line}", no_wrap=True, overflow="ellipsis", style="dim")
            for line in snapshot.candidates[-_CANDIDATES:]
        ]
    parts += [Text(line, style="yellow", no_wrap=True, overflow="ellipsis") for line in events]
    return Group(*parts)
