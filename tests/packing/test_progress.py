# SPDX-License-Identifier: Apache-2.0
"""The progress of a packing: lines in a log, a bar on a terminal, rate and time left."""

from __future__ import annotations

import io
import os

from aiperf_mpi.packing.progress import ProgressView, duration


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_log_has_a_line_now_and_then_with_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    view = ProgressView(stream, "packing", "pictures", 10_000, environ={}, clock=clock)
    # 400 pictures were there; 20 come each second, so that after 30 s 9,000 are left: 7:30.
    for second in range(31):
        clock.now = 100.0 + second
        view.update(400 + 20 * second, 400, "2 rejected")
    view.close()
    assert stream.getvalue() == (
        "aiperf_mpi: packing: 1,000 of 10,000 pictures, 20/s, 7:30 left, 2 rejected\n"
    )


def test_rate_is_that_of_the_last_minute() -> None:
    stream, clock = io.StringIO(), Clock()
    view = ProgressView(stream, "verifying", "GB", 10_000_000_000, 1e9, environ={}, clock=clock)
    done = 0
    for second in range(300):
        clock.now = 100.0 + second
        done += 1_000_000 if second < 200 else 50_000_000
        view.update(done)
    assert "0.05/s" in stream.getvalue().splitlines()[-1]


def test_terminal_gets_a_bar_and_lines_above_it() -> None:
    stream = Terminal()
    view = ProgressView(stream, "packing", "pictures", 50, environ={"TERM": "xterm"})
    view.update(20)
    view.say("a note\x1b[2J")
    view.close()
    text = stream.getvalue()
    assert "a note\\x1b[2J" in text and "20 of 50 pictures" in text


def test_log_that_cannot_be_written_ends_nothing() -> None:
    clock = Clock()
    with open("/dev/full", "w", buffering=1) as full:
        view = ProgressView(full, "packing", "pictures", 50, environ={}, clock=clock)
        clock.now += 31
        view.update(20)
        view.say("a note")
        # Python writes at its end what it has kept.
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), full.fileno())


def test_launched_rank_writes_plain_lines_even_to_a_terminal() -> None:
    stream = Terminal()
    view = ProgressView(stream, "packing", "pictures", 50, environ={"TERM": "xterm", "PMI_RANK": "0"})
    view.update(20)
    view.say("a note")
    assert stream.getvalue() == "aiperf_mpi: a note\n"


def test_duration_in_words() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
