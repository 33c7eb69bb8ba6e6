# SPDX-License-Identifier: Apache-2.0
"""The forms of a verdict (lines, exit codes, JSON, text): none of them can show a score of an invalid run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.commands.verify import verify_file
from aiperf_mpi.opcount.rates import exact_text, ops_text
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.rows import FAILED, new_row
from aiperf_mpi.results.judge.judge import NotAResult, Reason, Verdict, judge
from aiperf_mpi.results.output import process
from aiperf_mpi.results.report.text import MAX_ROWS, text_report
from aiperf_mpi.results.report.verdict import exit_code, lines_without_result, verdict_lines, verify_code
from tests.helpers.results.example_run import Example, example_run


def written(example: Example, folder: Path) -> Path:
    hdf5.write(folder / "result.h5", process.final_image(example.run()))
    return folder / "result.h5"


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    return judge(written(example_run(), tmp_path_factory.mktemp("result")))


@pytest.fixture(scope="module")
def invalid(valid: Verdict) -> Verdict:
    reasons = (Reason("V05", "a"), Reason("V13", "b"), Reason("V05", "c"))
    return dataclasses.replace(valid, valid=False, reasons=reasons)


def pairs(verdict: Verdict) -> dict[str, str]:
    """Parse the lines as a site's tools do; each key must occur once."""
    matches = [re.fullmatch(r"AIPERF_MPI (\w+): (.*)", line) for line in verdict_lines(verdict)]
    keys = [match[1] for match in matches if match]
    assert len(keys) == len(set(keys)) == len(matches)
    return {match[1]: match[2] for match in matches if match}


def test_lines_of_a_valid_trial(valid: Verdict) -> None:
    assert pairs(valid) == {
        "status": "VALID",
        "class": "trial",
        "division": "open",
        "end": "time_limit",
        "ranks": "5",
        "nodes": "2",
        "replicas": "2",
        "devices": "4",
        "core_seconds": "8.500",
        "trials": "6",
        "trials_done": "4",
        "best_error": "0.175000",
        "error_final": "0.175000",
        "trial_rate_ops": exact_text(valid.rate),
        "rate": ops_text(valid.rate),
    }


def test_lines_of_an_invalid_run_have_reasons_and_no_score(invalid: Verdict) -> None:
    for cls in ("trial", "official"):
        facts = pairs(dataclasses.replace(invalid, cls=cls))
        assert facts["status"] == "INVALID" and facts["reasons"] == "V05,V13"
        # The first problem of each reason.
        assert facts["why"] == "a; b"
        assert facts["unscored_rate_ops"] == exact_text(invalid.rate)
        assert not {"score_ops", "score_regulated", "trial_rate_ops"} & set(facts)


def test_lines_of_a_valid_official_run_alone_have_a_score(valid: Verdict) -> None:
    # No run is official yet, but the lines for one exist.
    official = dataclasses.replace(valid, cls="official")
    facts = pairs(official)
    assert facts["score_ops"] == exact_text(valid.rate)
    assert facts["score_regulated"] == exact_text(valid.regulated)
    assert not {"trial_rate_ops", "unscored_rate_ops", "reasons"} & set(facts)
    without_error = dataclasses.replace(official, regulated=math.nan, best_error=math.nan)
    assert "score_regulated" not in pairs(without_error) and pairs(without_error)["best_error"] == "nan"


def test_exit_codes(valid: Verdict, invalid: Verdict) -> None:
    assert exit_code(valid) == 0 and exit_code(invalid) == 3
    for verdict in (valid, invalid):
        assert exit_code(dataclasses.replace(verdict, end="drained")) == 4
    # `verify` judges the file alone.
    assert verify_code(dataclasses.replace(valid, end="drained")) == 0
    assert verify_code(dataclasses.replace(invalid, end="drained")) == 3


def test_a_run_without_a_result_is_invalid() -> None:
    assert lines_without_result("drained") == [
        "AIPERF_MPI status: INVALID",
        "AIPERF_MPI end: drained",
        "AIPERF_MPI reasons: V21",
        "AIPERF_MPI why: no result file of this run was written",
    ]
    cause = "/runs/x/journal: No space left\nAIPERF_MPI status: VALID"
    why = lines_without_result("drained", cause)[-1]
    assert "was written: /runs/x/journal: No space left" in why and why.count("AIPERF_MPI ") == 1


def test_verify_prints_every_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = example_run()
    file = written(example, tmp_path)
    assert verify_file(file) == 0
    out = capsys.readouterr().out
    findings = judge(file).findings
    assert re.findall(r"^([IV]\d\d) passed: ", out, re.MULTILINE) == [f.id for f in findings if f.passed]
    # The example is short, on a made-up machine and data set; only an official run may not be that.
    assert re.findall(r"^([IV]\d\d) not met: .*only official runs must: ", out, re.MULTILINE) == [
        "I16",
        "V15",
        "V18",
        "V19",
    ]
    assert "V05 passed" in out and "FAILED" not in out

    example.epochs["val_samples"][0] -= 1
    assert verify_file(written(example, tmp_path)) == 3
    out = capsys.readouterr().out
    assert re.search(
        r"^V05 FAILED: .*\n    /trials/val_samples row 0: 1080 instead of 1079", out, re.MULTILINE
    )


def test_verify_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(example_run(), tmp_path)
    assert verify_file(file, as_json=True) == 0
    data = json.loads(capsys.readouterr().out)
    verdict = judge(file)
    assert (data["status"], data["class"], data["valid"], data["reasons"]) == ("VALID", "trial", True, [])
    assert int(data["total_ops"]) == verdict.total_ops and data["trial_rate_ops"] == verdict.rate
    assert data["score_ops"] is None and data["unscored_rate_ops"] is None
    assert "rate" not in data and "regulated" not in data
    assert [finding["id"] for finding in data["findings"]] == [finding.id for finding in verdict.findings]


def test_the_text_report_has_the_verdict_first_and_all_sections(tmp_path: Path) -> None:
    example = example_run()
    example.trials["status"][example.trial(4)] = FAILED
    example.trials["cause"][example.trial(4)] = b"ValueError: the loss is nan"
    file = written(example, tmp_path)
    text = text_report(file)
    lines = text.splitlines()
    assert lines[: len(verdict_lines(judge(file)))] == verdict_lines(judge(file))
    for title in (
        "Run",
        "Rate over time",
        "Trials",
        "Tree of trials",
        "Time by kind",
        "Between candidates",
        "Messages",
        "Best network",
    ):
        assert re.search(f"^{title}", text, re.MULTILINE), title
    assert "cannot be shown" not in text
    # A failed trial with its cause; the tree; the best network's stem; no colour, no line beyond the width.
    assert "\n  trial 4 failed: ValueError: the loss is nan\n" in text
    assert re.search(r"^0: initial network  \[done, 0.1833\]\n[├└]── 2: ", text, re.MULTILINE)
    assert re.search(r"^ +0 +7x7 +2 +4 +16x16", text, re.MULTILINE)
    assert "\x1b" not in text and max(map(len, lines)) <= 110


def test_the_text_report_of_an_invalid_run_has_no_score(tmp_path: Path) -> None:
    example = example_run()
    example.ranks["phase_seconds"][1, -1] -= 5.0
    text = text_report(written(example, tmp_path))
    assert text.startswith("AIPERF_MPI status: INVALID\n")
    assert "V13: rank 1: phases sum to 5.000 s, but its wall time is 10.000 s" in text
    assert not re.search(r"\bscore_|trial_rate_ops", text)


def test_only_a_valid_run_has_a_rate_in_images(tmp_path: Path, valid: Verdict) -> None:
    # An image costs its training, and 50,000 / 1,281,167 of the validation of one.
    images = valid.rate / (23_053_458_315 + 7_806_583_495 * 50_000 / 1_281_167)
    path = written(example_run(), tmp_path)
    assert f"that of {images:,.3g} images of ImageNet a second on ResNet-50" in " ".join(
        text_report(path).split()
    )
    with h5py.File(path, "r+") as file:
        file["epochs/train_samples"][0] += 1
    assert "images of ImageNet" not in text_report(path)


def test_the_text_report_of_a_damaged_file_is_partial(tmp_path: Path) -> None:
    file = written(example_run(), tmp_path)
    data = resultfile.h5py.File(file, "r+")
    del data["trials/morphs"], data["ranks"]
    data.close()
    text = text_report(file)
    assert text.startswith("AIPERF_MPI status: INVALID")
    assert "cannot be shown: /ranks/rank is missing" in text
    # Rates come from the rows and their networks, and never from the file's own series.
    assert "Rate over time\n  cannot be shown: /trials/morphs is missing" in text
    assert re.search(r"^Messages\n +what +by", text, re.MULTILINE)


def test_the_text_report_of_a_long_run_stays_short(tmp_path: Path) -> None:
    # 60 trials, 90 samples, 60 ranks: more than a terminal shows.
    example = example_run(replicas=2, trials_each=30, epochs_each=3, sets=("run.tick=1.0",))
    example.header = dataclasses.replace(example.header, tick=1.0, n_ranks=60, n_generators=57)
    more = [
        new_row(example.ranks.dtype, rank=rank, node=0, replica=0, role="generator") for rank in range(5, 60)
    ]
    example.ranks = np.concatenate([example.ranks, *more])
    text = text_report(written(example, tmp_path))
    assert f"the best {MAX_ROWS} of 60" in text and "the ancestors of the best trial" in text
    assert f"the first {MAX_ROWS} of 60 ranks" in text
    assert len(text.splitlines()) < 400


def test_what_is_no_result_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no")
    for function in (text_report, verify_file):
        with pytest.raises(NotAResult, match="not a result"):
            function(tmp_path / "x")


def test_a_reader_that_leaves_gets_no_traceback(tmp_path: Path) -> None:
    """`report FILE | head` ends like any other tool after its reader has closed the pipe."""
    path = written(example_run(), tmp_path)
    for words in (["report", str(path)], ["verify", str(path)]):
        ours, theirs = os.pipe()
        os.close(ours)
        command = [sys.executable, "-m", "aiperf_mpi", *words]
        done = subprocess.run(
            command, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
        os.close(theirs)
        assert (done.returncode, done.stderr) == (141, "")


def test_an_output_that_is_full_is_one_line(tmp_path: Path) -> None:
    path = written(example_run(), tmp_path)
    for words in (["report", str(path)], ["verify", str(path)], ["verify", "--json", str(path)]):
        command = [sys.executable, "-m", "aiperf_mpi", *words]
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
            )
        assert done.returncode == 2 and "no space left" in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )


def test_a_narrow_encoding_costs_the_lines_of_the_tree_only(tmp_path: Path) -> None:
    path = written(example_run(), tmp_path)
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "aiperf_mpi", "report", str(path)],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (
        (done.returncode, done.stderr) == (0, b"")
        and b"0: initial network" in done.stdout
        and b"?" in done.stdout
    )


def test_warnings_before_the_start_are_in_the_report(tmp_path: Path) -> None:
    made = example_run()
    warning = {"level": "warn", "subject": "affinity", "text": "rank 1 on n1: \x1bone core", "remedy": "bind"}
    inventory = {**made.header.inventory, "findings": [warning, "nonsense", {"text": 3}]}
    made.header = dataclasses.replace(made.header, inventory=inventory)
    text = text_report(written(made, tmp_path))
    line = next(line for line in text.splitlines() if "warning before the start" in line)
    assert "rank 1 on n1: " in line and line.rstrip().endswith("one core; bind") and "\x1b" not in text
