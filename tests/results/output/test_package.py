# SPDX-License-Identifier: Apache-2.0
"""The files next to result.h5; standard output, exit code, result.json and attributes all agree."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import jsonschema
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.results.file import resultfile, tables
from aiperf_mpi.results.file.collector import RunCollector
from aiperf_mpi.results.file.rows import FAILED
from aiperf_mpi.results.output import package, process
from aiperf_mpi.results.output.repair import image_of
from tests.helpers.results.agreement import assert_all_agree, command
from tests.helpers.results.example_run import example_run

KINDS = ("valid trial", "invalid", "drained", "failed trial", "killed", "without an error")


def folder_of(kind: str, folder: Path) -> Path:
    """Make an output folder with the result of one kind of run, and return the result's path."""
    example = example_run()
    match kind:
        case "invalid":
            example.epochs["val_samples"][0] -= 1
        case "drained":
            example.end, example.core_seconds = "drained", 8.25
        case "failed trial":
            example.trials["status"][example.trial(4)] = FAILED
        case "without an error":
            example.epochs["val_error"] = math.nan
            example.trials["best_error"] = math.nan
            example.final = None
    folder.mkdir(exist_ok=True)
    if kind == "killed":
        # Such a run has no result of its own; this is what a repair makes of its journal.
        image = image_of(example.run(stopped=False))
    else:
        image = process.final_image(example.run())
    hdf5.write(folder / package.RESULT, image)
    package.describe(folder)
    return folder / package.RESULT


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_speaks_of_a_run_says_the_same(kind: str, tmp_path: Path) -> None:
    file = folder_of(kind, tmp_path / "run")
    verdict = assert_all_agree(file)
    assert verdict.valid == (kind in ("valid trial", "drained", "failed trial"))


def test_a_partial_result_of_a_killed_run_is_invalid_everywhere(tmp_path: Path) -> None:
    collector = RunCollector()
    collector.event("open", example_run().header.to_dict())
    with resultfile.new_file(tables.build(collector.snapshot(end="killed"))) as file:
        hdf5.write(tmp_path / package.PARTIAL, resultfile.seal(file, complete=False))
    assert not assert_all_agree(tmp_path / package.PARTIAL).valid
    done = command("verify", "--json", tmp_path / package.PARTIAL)
    data = json.loads(done.stdout)
    jsonschema.validate(data, package.summary_schema())
    assert (done.returncode, data["status"], data["end"]) == (3, "INVALID", "killed")
    assert "V21" in [reason["id"] for reason in data["reasons"]]


@pytest.mark.parametrize(
    "lie",
    [
        {"status": "INVALID"},
        {"score_ops": 1.0},
        {"unscored_rate_ops": 1.0},
        {"best_error": 1.5},
        {"total_ops": 7},
        {"class": "other"},
        {"rate": 1.0},
        {"findings": []},
        {"reasons": [{"id": "V05", "text": "x"}]},
    ],
)
def test_the_schema_refuses_a_summary_that_contradicts_itself(lie: dict, tmp_path: Path) -> None:
    file = folder_of("valid trial", tmp_path)
    data = json.loads((file.parent / package.SUMMARY).read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data | lie, package.summary_schema())


def test_the_manifest_is_that_of_sha256sum(tmp_path: Path) -> None:
    file = folder_of("valid trial", tmp_path)
    # Trial 6 is the example's best; the weights of others are not part of the manifest.
    (tmp_path / package.CHECKPOINTS).mkdir()
    for trial in (4, 6):
        (tmp_path / package.CHECKPOINTS / f"{trial}.h5").write_bytes(bytes([trial]) * 100)
    package.describe(tmp_path)
    names = list(package.read_manifest(tmp_path / package.MANIFEST))
    assert names == ["checkpoints/6.h5", "result.h5", "result.json"]
    tool = ["sha256sum", "--check", "--strict", package.MANIFEST]
    assert subprocess.run(tool, cwd=tmp_path, capture_output=True, timeout=60, check=False).returncode == 0
    assert package.check_manifest(tmp_path) == []

    (tmp_path / "checkpoints/6.h5").unlink()
    file.write_bytes(file.read_bytes() + b"\0")
    assert subprocess.run(tool, cwd=tmp_path, capture_output=True, timeout=60, check=False).returncode == 1
    faults = package.check_manifest(tmp_path)
    assert len(faults) == 2 and faults[0] == "checkpoints/6.h5 is missing"
    assert faults[1].startswith("result.h5 differs from")


@pytest.mark.parametrize(
    "line", ["no line", "0" * 64 + "  ../outside", "0" * 64 + "  /etc/passwd", "x" * 64 + "  a"]
)
def test_a_manifest_that_is_none_is_said(line: str, tmp_path: Path) -> None:
    folder_of("valid trial", tmp_path)
    (tmp_path / package.MANIFEST).write_text(f"{line}\n")
    assert "line 1 is not a line of a manifest" in package.check_manifest(tmp_path)[0]
    (tmp_path / package.MANIFEST).unlink()
    assert "cannot be read" in package.check_manifest(tmp_path)[0]
    (tmp_path / package.MANIFEST).write_text("")
    missing = [f"{package.MANIFEST} does not name {name}" for name in ("result.h5", "result.json")]
    assert package.check_manifest(tmp_path) == missing
