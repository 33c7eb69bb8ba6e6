# SPDX-License-Identifier: Apache-2.0
"""The output folder: what is accepted, what is refused before anything runs, and what a refusal leaves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aiperf_mpi.config import ConfigError, load
from aiperf_mpi.network.architecture import resnet50
from aiperf_mpi.planning.storage import default_output, estimate_bytes, prepare_output

DEMO = load("demo")


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    folder = prepare_output(DEMO, 1, tmp_path / "runs" / "first")
    assert folder == tmp_path / "runs" / "first" and folder.is_dir() and not list(folder.iterdir())


def test_an_empty_folder_and_a_relative_path_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert prepare_output(DEMO, 1, "empty") == tmp_path / "empty"


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("kept")
    with pytest.raises(ConfigError, match=f"--output {tmp_path}: not empty"):
        prepare_output(DEMO, 1, tmp_path)
    assert (tmp_path / "journal.jsonl").read_text() == "kept"


def test_a_file_or_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="a file of this name exists"):
        prepare_output(DEMO, 1, tmp_path / "file")
    with pytest.raises(ConfigError, match=r"file/below: cannot be created: Not a directory"):
        prepare_output(DEMO, 1, tmp_path / "file" / "below")


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    """Use /proc, which takes no files: permissions alone do not stop a super-user."""
    with pytest.raises(
        ConfigError, match=r"--output /proc/aiperf_mpi: cannot be created: .*; name another folder"
    ):
        prepare_output(DEMO, 1, "/proc/aiperf_mpi")


def test_too_little_space_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """Weights of a trillion replicas fit on no disk."""
    with pytest.raises(ConfigError, match=r"may write .* GiB, but .* GiB are free; make room"):
        prepare_output(DEMO, 10**12, tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_the_estimate_counts_every_replicas_weights() -> None:
    """Another replica adds its weights, kept and in replacement (float32 alone: 4 bytes a parameter), and
    rows."""
    parameters = resnet50(DEMO.base).parameters
    one, two, three = (estimate_bytes(DEMO, replicas) for replicas in (1, 2, 3))
    assert two - one == three - two >= 2 * 4 * parameters
    assert estimate_bytes(load("demo", sets=["result.keep_checkpoints=5"]), 1) - one >= 4 * 4 * parameters
    assert estimate_bytes(load("demo", time_limit=11000.0), 1) > one

    # The demo has to fit where a person tries it first: a laptop's disk.
    assert one < 2**28 < shutil.disk_usage("/").total


def test_the_default_name_is_the_time() -> None:
    assert default_output(0.0).startswith("runs/aiperf_mpi-19") and default_output() != default_output(0.0)
