# SPDX-License-Identifier: Apache-2.0
"""Presets in small, with the precision that they have by default: VALID on a CPU, which cannot multiply
bfloat16."""

from __future__ import annotations

import json
import time
from pathlib import Path

import h5py
import pytest

from aiperf_mpi.config import preset_expectation
from aiperf_mpi.data import cifar10
from tests.helpers import launch
from tests.helpers.cifar import write_batches
from tests.helpers.end_to_end import runs
from tests.helpers.results.agreement import command

pytestmark = pytest.mark.mpi

#: Seconds in which a trial of the smallest network ends.
SECONDS = 12


@pytest.mark.parametrize("preset", ["cifar10", "imagenet-synthetic"])
def test_a_preset_in_small_ends_valid_on_a_cpu(preset: str, tmp_path: Path) -> None:
    sets: tuple[str, ...] = ("data.augmentation=auto",)
    if preset == "cifar10":
        folder = tmp_path / cifar10.FOLDER
        write_batches(folder)
        sets = (
            *sets,
            f"data.path='{folder}'",
            "data.name='cifar10'",
            "data.image_size=32",
            "data.channels=3",
            "data.classes=10",
        )
    ended = runs.run(3, tmp_path / "run", sets, "--preset", preset, seconds=SECONDS)
    assert ended.code == 0 and ended.lines["status"] == "VALID", ended.text()

    # The choice is in the file, as if a person had made it, and in what is printed.
    with h5py.File(ended.result) as file:
        assert file.attrs["precision"] == "float32"
        stored = file["config/resolved_toml"].asstr()[()]
        why = json.loads(file["system/inventory_json"].asstr()[()])["precision"]
    assert 'precision = "float32"' in stored and f'preset = "{preset}"' in stored
    assert why.startswith("auto: XLA widens")
    assert f"float32 ({why})" in ended.err
    page = tmp_path / "report.html"
    assert command("report", ended.result, "--html", page).returncode == 0
    report = command("report", ended.result)
    assert report.returncode == 0 and "float32 (auto: XLA widens" in report.stdout, report.stdout

    # The error of made-up pictures regulates no rate.
    told = (report.stdout, page.read_text(encoding="utf-8"))
    assert all(("regulated" in text) == (preset == "cifar10") for text in told), report.stdout


@pytest.mark.full
def test_the_demo_gives_what_its_preset_says(tmp_path: Path) -> None:
    """As `bin/demo` runs it, on a quiet machine."""
    words = ["-m", "aiperf_mpi", "--preset", "demo", "--output", str(tmp_path / "run"), "--view", "plain"]
    start = time.monotonic()
    ended = runs.finish(launch.start(4, words, mpi="mpich"), tmp_path / "run", timeout=400)
    minutes, expected = (time.monotonic() - start) / 60, preset_expectation("demo")
    trials, error = int(ended.lines["trials_done"]), float(ended.lines["best_error"])
    assert ended.code == 0 and expected.holds(minutes, trials, error), (minutes, ended.text())
