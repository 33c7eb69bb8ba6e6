# SPDX-License-Identifier: Apache-2.0
"""What chose the candidates: in the file, in the verdict and in the reports."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import h5py
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.results.judge.judge import Verdict, judge
from aiperf_mpi.results.output import process
from aiperf_mpi.results.report.html import html_report
from aiperf_mpi.results.report.text import text_report
from aiperf_mpi.results.report.verdict import verdict_json, verdict_lines
from aiperf_mpi.trials.origin import Origin, expectation, fill
from aiperf_mpi.trials.record import PROPOSED, seal
from tests.helpers.results.example_run import Example, example_run

#: The origins of the example's six trials, in the order of their slots. The observed errors are 200/3 wrong
#: answers of 360 less one for each trial before (0.1833 for the first, 0.175 for the fourth); those of the
#: last two have two epochs: 100 less four and five, 0.2667 and 0.2639.
ORIGINS = (
    Origin("initial", "default"),
    Origin("design", "default"),
    Origin("surrogate", "default", expectation(0.20, 0.01)),
    Origin("surrogate", "design", expectation(0.17, 0.01)),
    Origin("evolution", "optimiser", expectation(0.2567, 0.05)),
    Origin("surrogate", "optimiser", None),
)


def example(*, recorded: bool) -> Example:
    run = example_run()
    origins = iter(ORIGINS)
    for index, record in enumerate(run.records):
        if recorded and record["kind"] == PROPOSED:
            changed = record.copy()
            fill(changed, next(origins))
            run.records[index] = seal(changed)
    return run


def written(run: Example, folder: Path) -> Path:
    hdf5.write(folder / "result.h5", process.final_image(run.run()))
    return folder / "result.h5"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(example(recorded=True), tmp_path_factory.mktemp("choices"))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(example(recorded=False), tmp_path_factory.mktemp("choices"))


def counts(verdict: Verdict) -> list[str]:
    return [line for line in verdict_lines(verdict) if line.startswith("AIPERF_MPI trials_by_")]


def test_the_verdict_counts_the_trained_candidates_of_both(path: Path) -> None:
    verdict = judge(path)
    assert verdict.valid, verdict.reasons
    assert counts(verdict) == ["AIPERF_MPI trials_by_surrogate: 3", "AIPERF_MPI trials_by_hpo: 2"]
    told = json.loads(verdict_json(verdict))
    assert (told["trials_by_surrogate"], told["trials_by_hpo"]) == (3, 2)


def test_a_candidate_that_was_never_trained_does_not_count(tmp_path: Path) -> None:
    # The last trial of the second replica, which both chose, has no epoch.
    run = example(recorded=True)
    last = int(run.trials["trial_id"][-1])
    run.epochs = run.epochs[run.epochs["trial_id"] != last]
    run.trials = run.trials[:-1]
    assert counts(judge(written(run, tmp_path))) == [
        "AIPERF_MPI trials_by_surrogate: 2",
        "AIPERF_MPI trials_by_hpo: 1",
    ]


def test_a_file_that_does_not_say_is_counted_nowhere(without: Path) -> None:
    verdict = judge(without)
    assert verdict.valid and counts(verdict) == []
    assert not {"trials_by_surrogate", "trials_by_hpo"} & set(json.loads(verdict_json(verdict)))
    assert "not recorded" in text_report(without).split("What chose the candidates")[1]


def test_reports_compare_what_was_expected_with_what_came(path: Path) -> None:
    section = text_report(path).split("What chose the candidates")[1].split("Time by kind")[0]
    assert "networks: 1 by initial, 1 by design, 3 by surrogate, 1 by evolution" in section
    assert "hyperparameters: 3 by default, 1 by design, 2 by optimiser" in section
    rows = [line.split() for line in section.splitlines() if " surrogate " in line or " optimiser " in line]
    # 64 of 360 wrong: 0.1778, 0.0222 below 0.2000. 63 of 360: 0.1750. 96 of 360: 0.2667. 95 of 360: 0.2639.
    assert [row[-5:] for row in rows] == [
        ["0.2000", "0.0100", "0.1778", "-0.0222", "-2.2"],
        ["0.1700", "0.0100", "0.1750", "+0.0050", "+0.5"],
        ["0.2567", "0.0500", "0.2667", "+0.0100", "+0.2"],
        ["-", "-", "0.2639", "-", "-"],
    ]
    assert "2 of 3 observed errors are within 1.96 standard deviations" in section
    page = html_report(path)
    assert "<h2>What chose the candidates</h2>" in page and "<td>surrogate</td>" in page


def test_nothing_is_expected_of_a_file_of_an_earlier_version() -> None:
    from aiperf_mpi.results.file import resultfile

    trials = resultfile.read(Path(__file__).parents[2] / "data" / "result-0.1.h5").tables["trials"]
    assert set(trials["chosen_by"]) == set(trials["tuned_by"]) == {""}
    assert all(map(math.isnan, trials["expected_error"])) and len(trials["expected_error"])


def test_a_deviation_of_zero_is_not_known(tmp_path: Path) -> None:
    run = example(recorded=True)
    file = written(run, tmp_path)
    with h5py.File(file, "r+") as result:
        result["trials/expected_deviation"][...] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = text_report(file)
    assert "standard deviations of what was expected" not in report
    assert "The deviation is that of one trial" in report
