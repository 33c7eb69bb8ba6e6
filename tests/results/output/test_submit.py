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
from aiperf_mpi.opcount.rates import rate_text
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.judge import judge, rules
from aiperf_mpi.results.output import package, process
from aiperf_mpi.results.output.submit import Refused, _together, main
from tests.helpers.results.example_run import example_run
from tests.helpers.results.official_run import RULES, official_run

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


def test_three_official_runs_are_a_submission_with_the_median_score(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [official_folder(tmp_path / str(seed), seed) for seed in rules.SEEDS]
    verdicts = [judge.judge(folder / package.RESULT, rules=RULES) for folder in folders]
    # Each seed gives other networks, and so another rate.
    scores = sorted(verdict.score_ops for verdict in verdicts)
    assert 0 < scores[0] < scores[1] < scores[2]

    archive = tmp_path / "submission.tar.gz"
    assert main([*map(str, folders), "--output", str(archive)], RULES) == 0
    out = capsys.readouterr().out
    assert f"an official submission, closed, median score_ops: {rate_text(scores[1])}" in out
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "out", filter="data")
    for seed, verdict in zip(rules.SEEDS, verdicts, strict=True):
        unpacked = judge.judge(tmp_path / f"out/official-{seed}/result.h5", rules=RULES)
        assert unpacked.valid and unpacked.score_ops == verdict.score_ops

    # The command takes the benchmark's own rules, by which these made-up names are not ImageNet's.
    command = [root / "bin/aiperf-submit", *folders, "--output", tmp_path / "b.tar.gz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3 and "its classes are not the sorted ones of ILSVRC2012" in done.stderr
    assert not (tmp_path / "b.tar.gz").exists()


def official_folder(folder: Path, seed: int) -> Path:
    """The output folder of an official example."""
    (folder / "checkpoints").mkdir(parents=True)
    example = official_run(seed=seed)
    hdf5.write(folder / package.RESULT, process.final_image(example.run(), rules=RULES))
    assert example.final is not None
    (folder / f"checkpoints/{example.final[0]}.h5").write_bytes(b"weights of %d" % seed)
    package.describe(folder, RULES)
    return folder


def repeated(result: Result, seed: int) -> Result:
    """Return a result as that of another run: with another seed and other losses."""
    epochs = dict(result.tables["epochs"])
    for name in ("train_loss", "val_loss"):
        epochs[name] = epochs[name] * (1 + 1e-4 * (seed - rules.SEEDS[0]))
    return replace(with_attributes(result, seed=seed), tables=result.tables | {"epochs": epochs})


def test_runs_that_are_no_repetitions_of_one_are_no_submission(run: Path, tmp_path: Path) -> None:
    trial = judge.judge(run / package.RESULT)
    result, official = judge.judge_file(
        official_folder(tmp_path / "official", 2021) / package.RESULT, rules=RULES
    )
    runs, results = [official] * 3, [repeated(result, seed) for seed in rules.SEEDS]
    copies = [with_attributes(result, seed=seed) for seed in rules.SEEDS]
    assert _together(runs, results).startswith("an official submission, closed, median score_ops: ")

    def other(name: str, old: str, new: str) -> list[Result]:
        text = result.documents[name]
        assert old in text
        documents = dict(results[1].documents) | {name: text.replace(old, new)}
        return [results[0], replace(results[1], documents=documents), results[2]]

    commit = ("0" * 40, "1" * 40)
    for verdicts, files, says in (
        (runs[:2], results[:2], "has 3 runs, not 2"),
        (runs, [results[0], results[0], results[1]], "the seeds are"),
        ([trial, *runs[1:]], results, "official runs only"),
        ([replace(runs[0], devices=5), *runs[1:]], results, "differ in devices"),
        (runs, [with_attributes(results[0], dataset_sha256="0" * 64), *results[1:]], "content of their data"),
        (runs, other("system/inventory_json", *commit), "differ in the commit"),
        (runs, other("config/resolved_toml", "\nlr = 0.1\n", "\nlr = 0.05\n"), "differ in configuration"),
        (runs, copies, "copies of one run"),
    ):
        with pytest.raises(Refused, match=says):
            _together(verdicts, files)


def with_attributes(result: Result, **attributes: object) -> Result:
    """A result with other attributes."""
    return replace(result, attributes=result.attributes | attributes)


def test_a_summary_in_the_words_of_another_version_is_taken(run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / package.SUMMARY).read_text())
    summary["findings"][0] |= {"about": "In other words.", "limit": "other words", "measured": "words"}
    (run / package.SUMMARY).write_text(json.dumps(summary))
    hashes = {name: package.sha256(run / name) for name in package.read_manifest(run / package.MANIFEST)}
    (run / package.MANIFEST).write_text(package.manifest_text(hashes))
    assert main([str(run), "--output", str(tmp_path / "run.tar.gz")]) == 0
