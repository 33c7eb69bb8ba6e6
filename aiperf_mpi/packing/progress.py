# SPDX-License-Identifier: Apache-2.0
"""Show how far a packing is: a bar with rate and time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from aiperf_mpi.launchers import RANK_VARIABLES
from aiperf_mpi.printable import plain

#: Seconds between two lines of a log, and seconds back to which the rate reaches.
LINE_SECONDS, RATE_SECONDS = 30.0, 60.0


class ProgressView:
    """Shows on `stream` how many of `total` things are done.

    Arguments:
        stream: standard error.
        doing, unit: what is done and with what, such as `packing` and `pictures`.
        total: number of things in all.
        scale: things of a unit, such as 1e9 for bytes that are shown in GB.
        bar: whether a bar is shown; None: on a terminal.
        environ, clock: the environment, and seconds that never go back.
    """

    def __init__(
        self,
        stream: TextIO,
        doing: str,
        unit: str,
        total: int,
        scale: float = 1.0,
        *,
        bar: bool | None = None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._doing, self._unit = stream, doing, unit
        self._total, self._scale, self._clock = total, scale, clock
        self._points: deque[tuple[float, int]] = deque()
        self._line = clock()
        self._bar: Bar | None = None
        self._task = TaskID(0)
        if is_terminal(stream, environ) if bar is None else bar:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            console = Console(file=stream, force_terminal=bar)
            self._bar = Bar(*columns, console=console, transient=True, refresh_per_second=4)
            self._task = self._bar.add_task(doing, total=total, text="")
            self._bar.start()

    def update(self, done: int, skipped: int = 0, more: str = "") -> None:
        """Take a new state: what is done, how much of it was done before, and more text."""
        now = self._clock()
        self._points.append((now, done - skipped))
        while len(self._points) > 2 and self._points[1][0] < now - RATE_SECONDS:
            self._points.popleft()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=self._text(done, more))
        elif now - self._line >= LINE_SECONDS:
            self._line = now
            self.say(f"{self._doing}: {self._text(done, more)}")

    def say(self, text: str) -> None:
        """Show a line, above the bar where there is one."""
        line = f"aiperf_mpi: {plain(text)}"
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        # The work does not end because its log cannot be written.
        with suppress(OSError):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def close(self) -> None:
        """Remove the bar; closing twice is allowed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _text(self, done: int, more: str) -> str:
        """Return a state in words: how much, at which rate, and how long the rest takes."""
        text = f"{self._number(done)} of {self._number(self._total)} {self._unit}"
        (begin, before), (end, after) = self._points[0], self._points[-1]
        if end > begin and after > before:
            rate = (after - before) / (end - begin)
            text += f", {self._number(rate)}/s, {duration((self._total - done) / rate)} left"
        return f"{text}, {more}" if more else text

    def _number(self, value: float) -> str:
        return f"{value / self._scale:,.0f}" if self._scale == 1 else f"{value / self._scale:,.2f}"


def is_terminal(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a person sees what is written; under a launcher isatty proves nothing."""
    launched = any(name in environ for name in RANK_VARIABLES)
    return stream.isatty() and not launched and environ.get("TERM", "dumb") != "dumb"


def duration(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
