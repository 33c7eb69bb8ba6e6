# SPDX-License-Identifier: Apache-2.0
"""The view: plain lines at most once a second, a picture on a terminal, and the choice of the two."""

from __future__ import annotations

import io
import os
import pty
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiperf_mpi.parallel.coordinator.view import (
    ReplicaLine,
    View,
    ViewSnapshot,
    format_time,
    resolve_mode,
    status_line,
)
from aiperf_mpi.parallel.shared.status import ReplicaStatus

SNAPSHOT = ViewSnapshot(
    elapsed=40.0,
    time_limit=110.0,
    replicas=3,
    busy=2,
    trials=7,
    failed=1,
    best_error=0.0219,
    rate=1.234e9,
    under_way=0.12,
    present=1.5e9,
    candidates=("trial 6: deeper 3", "trial 9: wider 4"),
)

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d aiperf_mpi: \S.*")


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


# -- plain lines -----------------------------------------------------------------------------------


def test_the_status_line_shows_the_whole_state() -> None:
    assert status_line(SNAPSHOT) == (
        "training, 1:10 left, 2 of 3 replicas busy, 7 trials done (1 failed), best error 0.0219, now 1.5 "
        "GOPS, 1.234 GOPS since the start (12% in running epochs, by steps)"
    )
    assert "best error -" in status_line(replace(SNAPSHOT, best_error=None))
    # After a drain the rest of the time limit is not left: the run ends.
    ended = replace(
        SNAPSHOT, phase="ending", replicas=1, busy=0, trials=1, failed=0, present=None, under_way=0.0
    )
    assert status_line(ended) == (
        "ending, waits for validations and for compilations, which cannot be cancelled, 1 trial done, best "
        "error 0.0219, 1.234 GOPS since the start"
    )


def several(*statuses: ReplicaStatus, replicas: int = 3, rate: float | None = None) -> ViewSnapshot:
    """A state in which replicas do this, one of them at `rate`."""
    phases = Counter(status.phase for status in statuses).most_common()
    lines = tuple(ReplicaLine(status, rate if status.trains else None) for status in statuses)
    return replace(SNAPSHOT, replicas=replicas, lines=lines, phases=tuple(phases), time_limit=43_200.0)


def test_each_replica_has_a_line() -> None:
    words = [
        str(ReplicaLine(ReplicaStatus(0, 3, "train", 1, 8, loss=0.41237), 1.48e9)),
        str(ReplicaLine(ReplicaStatus(1, 5, "compile"))),
        str(ReplicaLine(ReplicaStatus(2))),
        str(ReplicaLine(ReplicaStatus(3, phase="io"))),
    ]
    assert words == [
        "replica 0: trial 3, train, epoch 2 of 8, loss 0.4124, 1.48 GOPS",
        "replica 1: trial 5, compile",
        "replica 2: idle, waits for a candidate",
        "replica 3: io, between two trials",
    ]


def test_a_change_is_in_the_log_within_two_seconds_and_once() -> None:
    """A state comes every 0.1 s; a replica trains epochs of 5 s, the others go on compiling."""
    clock, stream = Clock(), io.StringIO()
    view = View("plain", stream, clock=clock, wall_clock=clock)
    seen: dict[int, float] = {}
    for tenth in range(300):
        clock.now = tenth / 10
        epoch = tenth // 50
        if tenth % 70 == 0:
            view.log("event")
        view.update(several(ReplicaStatus(0, 1, "train", epoch, 8), ReplicaStatus(1, 2, "compile")))
        for number in re.findall(r"epoch (\d+) of 8", stream.getvalue()):
            seen.setdefault(int(number) - 1, clock.now)
    assert sorted(seen) == list(range(6)) and all(0 <= at - 5 * epoch <= 2 for epoch, at in seen.items())
    assert stream.getvalue().count("replica 0: trial 1, train") == 6
    assert stream.getvalue().count("replica 1: trial 2, compile") == 1


def test_of_many_replicas_the_log_has_counts_and_the_slowest() -> None:
    clock, stream = Clock(), io.StringIO()
    view = View("plain", stream, clock=clock, wall_clock=clock)
    slow = ReplicaStatus(17, 40, "train", 2, 15, loss=1.5)

    def update(trains: int, seconds: float) -> str:
        clock.now += seconds
        before = stream.tell()
        state = several(slow, replicas=300, rate=2e9)
        view.update(replace(state, phases=(("train", trains), ("compile", 300 - trains))))
        return stream.getvalue()[before:]

    text = update(290, 0.0)
    assert "replicas: 290 train, 10 compile\n" in text
    assert "slowest: replica 17: trial 40, train, epoch 3 of 15, loss 1.5000, 2 GOPS\n" in text
    # 15 of 300 are not many; 16 are.
    assert update(275, 2.0) == "" and "274 train, 26 compile" in update(274, 2.0)


def test_the_picture_shows_replicas() -> None:
    for replicas, words in ((3, "replica 1: trial 2, compile"), (9, "replicas: 1 train, 1 compile")):
        stream = io.StringIO()
        view = View("live", stream, environ={"COLUMNS": "100", "LINES": "40"})
        both = ReplicaStatus(0, 1, "train", 0, 8), ReplicaStatus(1, 2, "compile")
        view.update(several(*both, replicas=replicas))
        view.close()
        assert words in stream.getvalue()


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=60))
def test_one_line_a_second_at_most_and_no_event_lost(steps: list[tuple[float, bool]]) -> None:
    clock, stream = Clock(), io.StringIO()
    view = View("plain", stream, clock=clock, wall_clock=clock)
    times, logged = [], 0
    for wait, event in steps:
        clock.now += wait
        before = stream.tell()
        if event:
            view.log(f"event {logged}")
            logged += 1
        else:
            view.update(replace(SNAPSHOT, elapsed=clock.now))
        if stream.tell() > before:
            times.append(clock.now)
    assert all(later - earlier >= 1 for earlier, later in zip(times, times[1:], strict=False))

    view.close()
    lines = stream.getvalue().splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    more = sum(int(number) for number in re.findall(r"(\d+) more events", stream.getvalue()))
    assert stream.getvalue().count("event ") + more == logged


def test_status_comes_each_minute_and_oftener_in_short_runs() -> None:
    for limit, seconds, expected in ((43_200.0, 600, 10), (110.0, 110, 20)):
        clock, stream = Clock(), io.StringIO()
        view = View("plain", stream, clock=clock, wall_clock=clock)
        for second in range(seconds * 4):
            clock.now = second / 4
            view.update(replace(SNAPSHOT, elapsed=clock.now, time_limit=limit))
        assert abs(len(stream.getvalue().splitlines()) - expected) <= 1


def test_lines_stay_lines() -> None:
    stream = io.StringIO()
    view = View("plain", stream)
    view.log("first\nsecond\r\n third")
    view.close()
    view.close()
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("aiperf_mpi: first second third")


# -- the live view ---------------------------------------------------------------------------------


def test_the_picture_shows_the_run_and_restores_the_terminal() -> None:
    clock, stream = Clock(), io.StringIO()
    view = View("live", stream, environ={"COLUMNS": "80", "LINES": "24"}, clock=clock)
    view.update(SNAPSHOT)
    view.log("trial 5 failed: loss is not finite")
    view.close()
    view.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for part in (
        "1:10 left",
        "2 of 3",
        "7 trials done (1 failed)",
        "0.0219",
        "1.234 GOPS",
        "deeper 3",
        "5 failed",
    ):
        assert part in shown, part

    # The cursor is hidden during drawing and shown after it; no line is wider than the terminal.
    assert stream.getvalue().count("\x1b[?25l") == 1 and stream.getvalue().rstrip().endswith("\x1b[?25h")
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_the_end_of_a_trial_is_shown_once() -> None:
    """The live view has it among the candidates; plain lines have it as an event."""
    screen, lines = Terminal(), io.StringIO()
    live, plain = View("live", screen, environ={}), View("plain", lines, environ={})
    for view in (live, plain):
        view.update(replace(SNAPSHOT, candidates=("trial 9 done, best error 0.0219 in 4 epochs",)))
        view.trial("trial 9 done, best error 0.0219 in 4 epochs")
        view.close()
    last_picture = screen.getvalue().rsplit("replicas busy", 1)[1]
    assert last_picture.count("trial 9 done") == 1
    assert lines.getvalue().count("trial 9 done") == 1


def test_pictures_are_limited_in_rate() -> None:
    clock, stream = Clock(), io.StringIO()
    view = View("live", stream, environ={"COLUMNS": "80", "LINES": "24"}, clock=clock)
    view.update(SNAPSHOT)
    size = stream.tell()
    clock.now += 0.1
    view.update(SNAPSHOT)
    assert stream.tell() == size
    clock.now += 0.2
    view.update(SNAPSHOT)
    assert stream.tell() > size
    view.close()


def test_a_long_list_of_events_stays_short() -> None:
    stream = io.StringIO()
    view = View("live", stream, environ={"COLUMNS": "80", "LINES": "24"})
    for number in range(100):
        view.log(f"event-{number}")
    before = stream.tell()
    view.close()
    last = stream.getvalue()[before:]
    assert "event-99" in last and "event-90" not in last


# -- which of the two ------------------------------------------------------------------------------


def test_auto_is_live_only_on_a_terminal() -> None:
    assert resolve_mode("auto", Terminal(), {"TERM": "xterm"}) == "live"
    assert resolve_mode("auto", io.StringIO(), {"TERM": "xterm"}) == "plain"
    assert resolve_mode("auto", Terminal(), {"TERM": "dumb"}) == "plain"
    assert resolve_mode("auto", Terminal(), {}) == "plain"


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "PMIX_RANK"])
def test_under_a_launcher_a_terminal_proves_nothing(variable: str) -> None:
    """Open MPI's launcher gives every rank a pseudo-terminal, also in a batch job."""
    parent, child = pty.openpty()
    with os.fdopen(parent), os.fdopen(child, "w") as stream:
        assert stream.isatty()
        assert resolve_mode("auto", stream, {"TERM": "xterm", variable: "0"}) == "plain"
        assert resolve_mode("live", stream, {variable: "0"}) == "live"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="view 'fancy' is not one of auto, live, plain"):
        resolve_mode("fancy", io.StringIO(), {})


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0:00"), (0, "0:00"), (59.6, "1:00"), (110, "1:50"), (3600, "1:00:00"), (43_199, "11:59:59")],
)
def test_times(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
