# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: ratios, repetitions, weak scaling; an invalid run is marked and not used."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.__main__ import main
from aiperf_mpi.results.judge.judge import judge
from aiperf_mpi.results.output import process
from aiperf_mpi.results.report import scaling
from aiperf_mpi.results.report.compare import Entry, compare, compare_files, entry
from aiperf_mpi.results.report.interval import Estimate
from aiperf_mpi.results.report.verdict import known, verdict_object
from tests.helpers.results.example_run import example_run


def written(folder: Path, name: str, run_id: str = "", damage: bool = False, **changes: object) -> Path:
    """Write the result of an example under a name; return its path (seed 7 by default)."""
    example = example_run(**changes)  # type: ignore[arg-type]
    example.header = replace(example.header, run_id=run_id or name)
    if damage:
        example.ranks["phase_seconds"][1, -1] -= 5.0
    path = folder / f"{name}.h5"
    hdf5.write(path, process.final_image(example.run()))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compare")
    return {
        "one": written(folder, "one", replicas=1),
        "two": written(folder, "two", replicas=2),
        "again": written(folder, "again", replicas=2, seed=8),
        "three": written(folder, "three", replicas=3),
        "bad": written(folder, "bad", replicas=3, damage=True),
    }


def test_fit_of_exact_rates() -> None:
    # Every doubling keeps 0.9 of the rate per device: exponent 1 + log2(0.9), efficiencies 0.9 and 0.81.
    rates = {4: [100.0], 8: [180.0], 16: [324.0]}
    scaled = scaling.fit(rates, {devices: Estimate(own[0]) for devices, own in rates.items()})
    assert scaled is not None
    assert scaled.exponent.value == pytest.approx(1 + math.log2(0.9))
    assert scaled.exponent.low == pytest.approx(scaled.exponent.high)
    assert [size.efficiency.value for size in scaled.sizes] == pytest.approx([1.0, 0.9, 0.81])
    assert scaled.rate_at(8) == pytest.approx(180.0)
    assert scaling.fit({4: [1.0, 2.0]}, {4: Estimate(1.5)}) is None


def test_fit_of_scattered_rates() -> None:
    # ln N = 0, ln 2, 2 ln 2 (in units of ln 2: 0, 1, 2), ln rate = 0, 1.2, 1.8 in the same units: slope 0.9,
    # residuals -0.1, 0.2, -0.1; error of the slope sqrt(0.06 / 1 / 2) = 0.17321, t(1) = 12.7062.
    rates = {1: [1.0], 2: [2**1.2], 4: [2**1.8]}
    scaled = scaling.fit(rates, {devices: Estimate(own[0]) for devices, own in rates.items()})
    assert scaled is not None and scaled.exponent.value == pytest.approx(0.9)
    assert scaled.exponent.high == pytest.approx(0.9 + 12.7062 * 0.173205, rel=1e-5)


def test_ratios_and_scaling_of_results(files: dict[str, Path]) -> None:
    comparison = compare([entry(files[name]) for name in ("one", "two", "three")])
    rates = [judge(files[name]).rate for name in ("one", "two", "three")]
    assert [item.value for item in comparison.ratios] == pytest.approx([rate / rates[0] for rate in rates])
    assert all(item.known for item in comparison.ratios[1:])
    assert comparison.scaling is not None
    assert [size.devices for size in comparison.scaling.sizes] == [2, 4, 6]
    assert comparison.scaling.sizes[2].efficiency.value == pytest.approx(rates[2] / rates[0] / 3)


def test_repetitions_are_grouped_by_all_but_the_seed(files: dict[str, Path]) -> None:
    comparison = compare([entry(files[name]) for name in ("two", "again", "three")])
    assert [[Path(item.path).stem for item in group.entries] for group in comparison.groups] == [
        ["two", "again"],
        ["three"],
    ]
    assert comparison.groups[0].rate.origin == "repetitions"
    # The same file twice, or the same run under another name, is not a repetition.
    twice = compare([entry(files["two"]), entry(files["two"])])
    assert [len(group.entries) for group in twice.groups] == [1]
    assert any("counts once" in note for note in twice.notes)


def test_an_invalid_run_enters_nothing(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compare([entry(files[name]) for name in ("bad", "one", "two")])
    assert math.isnan(comparison.ratios[0].value) and comparison.ratios[1].value == 1.0
    assert all("bad" not in item.path for group in comparison.groups for item in group.entries)
    assert comparison.scaling is not None and [size.devices for size in comparison.scaling.sizes] == [2, 4]

    # In the text it has only an unscored rate, and the exit code is that of an invalid run.
    assert compare_files([files["bad"], files["one"]]) == 3
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("1 "))
    assert "INVALID" in row and "unscored_rate_ops" in row and row.rstrip().endswith("-")
    assert "is INVALID (V13)" in text
    assert compare_files([files["one"], files["two"]]) == 0
    capsys.readouterr()


def test_runs_of_other_work_are_named_and_not_fitted(files: dict[str, Path]) -> None:
    three = entry(files["three"])
    other = replace(three, alike={**three.alike, "precision": "bfloat16"})
    comparison = compare([entry(files["one"]), entry(files["two"]), other])
    assert any("precision differs (float32, bfloat16)" in note for note in comparison.notes)
    assert comparison.scaling is not None and [size.devices for size in comparison.scaling.sizes] == [2, 4]


def test_json_says_what_the_judge_says(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--json", *(str(files[name]) for name in ("one", "bad", "two"))]) == 3
    data = json.loads(capsys.readouterr().out)
    for run, name in zip(data["runs"], ("one", "bad", "two"), strict=True):
        verdict = judge(files[name])
        expected = json.loads(json.dumps(known(verdict_object(verdict, findings=False))))
        assert {key: run[key] for key in expected} == expected and "rate" not in run and "findings" not in run
    assert data["runs"][1]["ratio"]["value"] is None and data["runs"][1]["trial_rate_ops"] is None
    assert data["weak_scaling"]["sizes"][1]["devices"] == 4


def test_only_invalid_runs_give_a_table_without_ratios(files: dict[str, Path]) -> None:
    comparison = compare([entry(files["bad"])])
    assert math.isnan(comparison.ratios[0].value) and not comparison.groups and comparison.scaling is None


def test_a_run_without_work_has_no_rate(files: dict[str, Path]) -> None:
    # Nothing was credited: valid or not, no ratio to it exists.
    good = entry(files["one"])
    empty = Entry("empty", "empty", replace(good.verdict, rate=0.0), Estimate(math.nan), good.alike, "", 1)
    comparison = compare([empty, good])
    assert math.isnan(comparison.ratios[0].value) and any(
        "nothing was trained" in note for note in comparison.notes
    )


def test_what_is_no_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("no")
    assert main(["compare", str(tmp_path / "x")]) == 2
    assert "not a result" in capsys.readouterr().err
