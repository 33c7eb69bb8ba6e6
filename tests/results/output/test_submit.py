# SPDX-License-Identifier: Apache-2.0
"""The archive for a ranking: what is in it, that it is the same each time, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.config import from_toml
from aiperf_mpi.results.judge import judge, rules
from aiperf_mpi.results.output import package, process
from aiperf_mpi.results.output.submit import Refused, _together, main
from tests.helpers.results.example_run import example_run

CHECKPOINT = "checkpoints/6.h5"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Make the output folder of a valid trial run."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for trial in (4, 6):
        (folder / f"checkpoints/{trial}.h5").write_bytes(b"weights %d" % trial)
    (folder / "job.log").write_text("what the job said\n")
    hdf5.write(folder / package.RESULT, process.final_image(example_run().run()))
    package.describe(folder)
    return folder


def test_a_valid_run_is_packed_the_same_each_time(run: Path, tmp_path: Path, root: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    done = subprocess.run(
        [root / "bin/aiperf-submit", run, "--output", archive],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "one trial run, open, trial_rate_ops: " in done.stdout and "score" not in done.stdout
    (run / "job.log").touch()
    assert main([str(run), "--output", str(tmp_path / "b.tar.gz")]) == 0
    assert archive.read_bytes() == (tmp_path / "b.tar.gz").read_bytes()

    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "out", filter="data")
    names = sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    expected = [CHECKPOINT, "config.toml", "job.log", "result.h5", "result.json"]
    assert names == [*(f"example/{name}" for name in expected), package.MANIFEST]
    tool = ["sha256sum", "--check", "--strict", package.MANIFEST]
    assert (
        subprocess.run(tool, cwd=tmp_path / "out", capture_output=True, timeout=60, check=False).returncode
        == 0
    )
    # The receiver of the archive judges it again.
    verdict = judge.judge(tmp_path / "out/example/result.h5")
    assert verdict.valid and json.loads((tmp_path / "out/example/result.json").read_text())["valid"]
    assert from_toml((tmp_path / "out/example/config.toml").read_text()).run.seed == 7


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        ("invalid", 3, "the result is INVALID"),
        ("checkpoint", 3, "checkpoints/6.h5 is missing"),
        ("weights", 3, "checkpoints/6.h5 differs from the manifest"),
        ("summary", 3, "is not the verdict on"),
        ("manifest", 3, "manifest cannot be read"),
        ("no result", 2, "there is no such file"),
        ("archive", 2, "exists already"),
        ("no checkpoint", 3, "checkpoint of the best model, trial 6, is missing"),
    ],
)
def test_what_is_not_taken(
    damage: str, code: int, says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "a.tar.gz"
    match damage:
        case "invalid":
            example = example_run()
            example.epochs["val_samples"][0] -= 1
            hdf5.write(run / package.RESULT, process.final_image(example.run()))
            package.describe(run)
        case "checkpoint":
            (run / CHECKPOINT).unlink()
        case "no checkpoint":
            shutil.rmtree(run / "checkpoints")
            package.describe(run)
        case "weights":
            (run / CHECKPOINT).write_bytes(b"others")
        case "summary":
            # A better rate in result.json, with a manifest that fits.
            text = (run / package.SUMMARY).read_text()
            (run / package.SUMMARY).write_text(text.replace('"trial_rate_ops": ', '"trial_rate_ops": 9'))
            hashes = {n: package.sha256(run / n) for n in package.read_manifest(run / package.MANIFEST)}
            (run / package.MANIFEST).write_text(package.manifest_text(hashes))
        case "manifest":
            (run / package.MANIFEST).unlink()
        case "no result":
            (run / package.RESULT).unlink()
        case "archive":
            archive.write_bytes(b"precious")
    assert main([str(run), "--output", str(archive)]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and says in captured.err
    assert not archive.exists() or archive.read_bytes() == b"precious"
    assert not list(tmp_path.glob(".*.tmp"))


def with_another_rate(text: str) -> str:
    """Return the configuration with another learning rate."""
    return text.replace("\nlr = 0.1\n", "\nlr = 0.05\n")


def test_an_official_submission_is_three_runs_with_the_declared_seeds(run: Path) -> None:
    result, trial = judge.judge_file(run / package.RESULT)
    # Scores of 1, 3 and 2 op/s by the declared seeds: the median is 2.
    runs = [replace(trial, cls="official", rate=rate) for rate in (1.0, 3.0, 2.0)]
    results = [replace(result, attributes=result.attributes | {"seed": seed}) for seed in rules.SEEDS]
    assert (
        _together(runs, results)
        == "an official submission, open, median score_ops: 2.000000e+00 op/s (2 OPS)"
    )
    other = dict(results[1].documents)
    other["config/resolved_toml"] = with_another_rate(other["config/resolved_toml"])
    changed = [results[0], replace(results[1], documents=other), results[2]]
    for verdicts, files, says in (
        (runs[:2], results[:2], "has 3 runs, not 2"),
        (runs, [results[0], results[0], results[1]], "the seeds are"),
        ([trial, *runs[1:]], results, "official runs only"),
        ([replace(runs[0], devices=5), *runs[1:]], results, "differ in devices"),
        (runs, changed, "differ in configuration"),
    ):
        with pytest.raises(Refused, match=says):
            _together(verdicts, files)


def test_a_summary_in_the_words_of_another_version_is_taken(run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / package.SUMMARY).read_text())
    summary["findings"][0] |= {"about": "In other words.", "limit": "other words", "measured": "words"}
    (run / package.SUMMARY).write_text(json.dumps(summary))
    hashes = {name: package.sha256(run / name) for name in package.read_manifest(run / package.MANIFEST)}
    (run / package.MANIFEST).write_text(package.manifest_text(hashes))
    assert main([str(run), "--output", str(tmp_path / "run.tar.gz")]) == 0
