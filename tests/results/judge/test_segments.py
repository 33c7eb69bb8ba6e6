# SPDX-License-Identifier: Apache-2.0
"""A resumed run is a trial, valid by the sum of its segments; what does not fit together is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.reading import classified_of
from aiperf_mpi.results.judge.judge import judge, judge_file
from aiperf_mpi.results.output import process
from aiperf_mpi.results.report.answers import answers
from aiperf_mpi.results.report.verdict import verdict_lines, verdict_object
from tests.helpers.results.changes import changed
from tests.helpers.results.resumed_run import resumed_run, run_of


@pytest.fixture(scope="module", params=["killed", "drained"])
def resumed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a run of two segments, of which the first ended in each of two ways."""
    target = tmp_path_factory.mktemp(request.param) / "result.h5"
    hdf5.write(target, process.final_image(run_of(resumed_run(request.param).entries)))
    return target


def test_it_is_valid_as_a_trial(resumed: Path) -> None:
    result, verdict = judge_file(resumed)
    assert verdict.valid, verdict.reasons
    assert (verdict.cls, verdict.segments, verdict.end) == ("trial", 2, "time_limit")
    # 6 trials of 3 epochs; the two second trials have the epochs of their second training alone.
    assert verdict.trials == 6 and verdict.total_ops == sum(result.tables["epochs"]["ops_credited"].tolist())
    assert verdict.core_seconds == result.attributes["core_seconds"] == 8.5 + 1.25


def test_the_verdict_says_how_often_it_was_started_and_what_was_lost(resumed: Path) -> None:
    result, verdict = judge_file(resumed)
    assert "AIPERF_MPI segments: 2" in verdict_lines(verdict)
    assert verdict_object(verdict)["segments"] == 2
    words = "\n".join(answers(Evidence(result), verdict)[0].lines)
    assert "It has 2 segments, as it was resumed 1 time" in words
    ended = str(result.tables["segments"]["end"][0])
    assert f"segment 1: 4.2 s on 5 ranks, {ended}" in words
    assert "lost: 2 epochs of 2 trials that it cut short" in words
    departures = [str(departure) for departure in classified_of(Evidence(result))[2]]
    assert any("the run was resumed: it has 2 segments" in line for line in departures)


#: A change of a resumed run's file, and what finds it.
LIES: dict[str, tuple[str, Callable[[h5py.File], None]]] = {
    "time between the segments counts": ("I23", lambda f: _set(f, "segments/t_start", 1, 4.5)),
    "a segment ends later than it did": ("I23", lambda f: _set(f, "segments/t_end", 0, 5.0)),
    "the second segment began before the first one ended": (
        "I23",
        lambda f: _set(f, "segments/start_utc", 1, "2026-01-02T03:03:05+00:00"),
    ),
    "the first segment still runs": ("I23", lambda f: _set(f, "segments/end", 0, "running")),
    "a replica had other devices": ("I23", lambda f: _set(f, "segments/n_devices", 0, 8)),
    "a lost trial less than none": ("I23", lambda f: _set(f, "segments/lost_trials", 0, -1)),
    "the time limit became shorter": ("I23", lambda f: _set(f, "segments/time_limit", 0, 99.0)),
    "a rank of a third segment": ("V11", lambda f: _set(f, "ranks/segment", -1, 3)),
    "a sample of a third segment": ("I17", lambda f: _set(f, "samples/segment", -1, 3)),
    "its core time ended at another time of day": (
        "V02",
        lambda f: f.attrs.modify("core_stop_utc", "2026-01-02T03:04:14.750+00:00"),
    ),
    "a rank's time is shorter than its segment": ("V13", lambda f: _set(f, "ranks/wall_seconds", -1, 3.0)),
    "a window ends before its segment begins": (
        "I17",
        lambda f: _set(f, "samples/t", int((f["samples/segment"][...] == 1).sum()), 4.0),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_does_not_fit_together_is_found(resumed: Path, tmp_path: Path, lie: str) -> None:
    identifier, change = LIES[lie]
    verdict = changed(resumed, tmp_path, change)
    assert identifier in verdict.reason_ids, verdict.reasons


def test_a_file_without_its_segments_is_found(resumed: Path, tmp_path: Path) -> None:
    def remove(file: h5py.File) -> None:
        del file["segments"]

    assert not changed(resumed, tmp_path, remove).valid


def test_a_run_that_is_not_resumed_says_nothing_of_segments(path: Path) -> None:
    verdict = judge(path)
    assert verdict.segments == 1 and "segments" not in verdict_object(verdict)
    assert not [line for line in verdict_lines(verdict) if "segments" in line]


def _set(file: h5py.File, path: str, row: int, value: object) -> None:
    rows = len(file[path])
    file[path][row % rows] = value
