# SPDX-License-Identifier: Apache-2.0
"""The configuration of a resumed run: that of its folder, and what would change it is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiperf_mpi.__main__ import main
from tests.helpers.results.resumed_run import resumed_run, write_segment


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set", "train.lr=0.05"), "train.lr: 0.05 differs from the 0.1 of the run that is resumed"),
        (("--seed", "8"), "run.seed: 8 differs from the 7 of the run that is resumed"),
        (("--time-limit", "3"), "run.time_limit: 3 s is shorter than the"),
        (("--output", "elsewhere"), "--output: a run is resumed in its own folder"),
    ],
)
def test_what_would_change_the_run_is_refused(
    words: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_segment(tmp_path / "journal.jsonl", resumed_run().first)
    assert main(["run", "--resume", str(tmp_path), "--check", *words]) == 2
    assert told in capsys.readouterr().err
    assert main(["run", "--resume", str(tmp_path), "--check", "--time-limit", "99"]) == 0
    assert "time_limit = 99" in capsys.readouterr().out
