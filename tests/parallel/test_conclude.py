# SPDX-License-Identifier: Apache-2.0
"""What rank 0 says at the end of a run without a result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aiperf_mpi.planning.folder import OWNER, claim
from aiperf_mpi.results.output.package import JOURNAL
from tests.helpers.launch import ROOT

#: It imports MPI, so it runs in a process of its own.
CONCLUDE = """
import sys
from pathlib import Path
from aiperf_mpi.parallel.coordinator.coordinator import End
from aiperf_mpi.parallel.conclusion import conclude
from aiperf_mpi.results.output.client import WriterStatus
sys.exit(conclude(WriterStatus(), End("drained", 1.0, ""), Path(sys.argv[1]), "mine"))
"""


@pytest.mark.parametrize(
    ("state", "left"),
    [
        ("owned", "verify --repair"),
        ("owner damaged", "verify --repair"),
        ("without journal", "start the run again, in a new folder"),
        ("another's", "belongs to another run now"),
        ("removed", "start the run again"),
    ],
)
def test_what_is_left_of_a_run_without_a_result(tmp_path: Path, state: str, left: str) -> None:
    """A journal is advised to be repaired, also where only the owner file was damaged or removed."""
    folder = tmp_path / "run"
    if state != "removed":
        claim(folder, "other" if state == "another's" else "mine")
    if state not in ("removed", "without journal"):
        (folder / JOURNAL).write_text("{}")
    if state in ("owner damaged", "without journal"):
        (folder / OWNER).write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-c", CONCLUDE, folder], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 5 and left in done.stderr, done.stderr
