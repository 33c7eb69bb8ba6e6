# SPDX-License-Identifier: Apache-2.0
"""The answers to a reader's first questions, in the text, on the page, and at the end of a run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.opcount.rates import ops_text, rate_text
from aiperf_mpi.phases import PHASES
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.judge.judge import judge_file
from aiperf_mpi.results.output import process
from aiperf_mpi.results.report.answers import answer_lines, answers, phase_shares
from aiperf_mpi.results.report.html import html_report
from aiperf_mpi.results.report.text import text_report
from tests.helpers.results.example_run import Example, example_run

QUESTIONS = [
    "Valid?",
    "How fast, of what peak?",
    "Where did the time go?",
    "What was found?",
    "What to do next?",
]


def said(example: Example, folder: Path) -> tuple[dict[str, str], Path]:
    """The answers on an example's result by question, and its file."""
    path = folder / "result.h5"
    hdf5.write(path, process.final_image(example.run()))
    result, verdict = judge_file(path)
    given = answers(Evidence(result), verdict, "result.h5")
    assert [answer.question for answer in given] == QUESTIONS
    return {answer.question: " ".join(answer.lines) for answer in given}, path


def test_a_valid_trial(tmp_path: Path) -> None:
    words, path = said(example_run(), tmp_path)
    result, verdict = judge_file(path)
    assert words["Valid?"].startswith(
        "VALID: class trial, division open; it ended at its time limit after 8.5 s"
    )
    # The demo's data set is why its rate is not a score.
    assert "not a score" in words["Valid?"] and 'data.name = "digits" (fixed: "imagenet"' in words["Valid?"]
    assert rate_text(verdict.rate) in words["How fast, of what peak?"]
    assert "The peak of 4 devices is not known" in words["How fast, of what peak?"]
    assert f"Lowest validation error {verdict.best_error:.4f}, by trial 6" in words["What was found?"]
    assert "6 trials, of which 4 came to an end" in words["What was found?"]
    assert "pack ImageNet (docs/data.md)" in words["What to do next?"]

    # The same sentences are on top of the report, and of the page.
    text, page = text_report(path), html_report(path)
    head = page[: page.index("The verdict, key by key")]
    assert text.index("In short") < text.index("\nRun\n")
    for question in QUESTIONS:
        assert f"  {question}\n" in text and f"<h2>{question}</h2>" in head
    assert f"<strong>{ops_text(verdict.rate)}</strong>" in head
    # A bar of all phases: the shares are whole.
    widths = [float(width) for width in re.findall(r"<i style=\"width:([\d.]+)%", head)]
    assert len(widths) == len(PHASES) and sum(widths) == pytest.approx(100, abs=0.1)


def test_an_invalid_run_says_which_rule_it_breaks(tmp_path: Path) -> None:
    example = example_run()
    example.ranks["phase_seconds"][1, PHASES.index("train")] -= 5.0
    words, path = said(example, tmp_path)
    assert "INVALID" in words["Valid?"] and re.search(
        r"1 check of \d+ failed: - V13: rank 1", words["Valid?"]
    )
    assert "phases sum to 5.000 s, but its wall time is 10.000 s. The rule: " in words["Valid?"]
    assert (
        "Unscored rate" in words["How fast, of what peak?"]
        and "images" not in words["How fast, of what peak?"]
    )
    assert "aiperf_mpi verify result.h5" in words["What to do next?"]
    lines = answer_lines(Evidence(judge_file(path)[0]), judge_file(path)[1], "result.h5")
    assert lines[0].startswith("Valid? INVALID") and lines[1].startswith("    1 check")


def test_much_time_in_a_phase_has_a_remedy(tmp_path: Path) -> None:
    """Ranks 1 and 2 train: 10 s of wall time each, of which 3 go to compilation and 2 to idling."""
    example = example_run()
    for row in np.flatnonzero(example.ranks["role"] == b"trainer"):
        example.ranks["phase_seconds"][row] = 0.0
        for phase, seconds in (("train", 5.0), ("compile", 3.0), ("idle", 2.0)):
            example.ranks["phase_seconds"][row, PHASES.index(phase)] = seconds
    words, path = said(example, tmp_path)
    assert "train 50.0%, compile 30.0%, idle 20.0%." in words["Where did the time go?"]
    assert "compile took 30% of the trainers' time: run longer" in words["What to do next?"]
    assert "idle took 20% of the trainers' time: start more generators" in words["What to do next?"]
    assert "train took" not in words["What to do next?"]
    assert list(phase_shares(Evidence(judge_file(path)[0])))[:3] == ["train", "compile", "idle"]


def test_damaged_rows_leave_the_other_answers(tmp_path: Path) -> None:
    _, path = said(example_run(), tmp_path)
    result, verdict = judge_file(path)
    tables = {name: columns for name, columns in result.tables.items() if name != "ranks"}
    damaged = answers(Evidence(replace(result, tables=tables)), verdict)
    assert damaged[2].lines == ("Not known: /ranks/rank is missing.",)
    assert "Lowest validation error" in damaged[3].lines[0]
