# SPDX-License-Identifier: Apache-2.0
"""The next process removes the folders of killed processes, and none of a living one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiperf_mpi.parallel.replica.scratch import fresh, prefix, remove_orphans

OWNER = """
import sys, time
from pathlib import Path
from aiperf_mpi.parallel.replica.scratch import fresh
folder, lock = fresh(Path(sys.argv[1]))
print(folder, flush=True)
time.sleep(600)
"""


def test_only_folders_of_killed_processes_are_removed(root: Path, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    killed, (living, _) = Path(child.stdout.readline().strip()), fresh(tmp_path)
    for folder in (killed, living):
        (folder / "program").write_text("compiled")

    # Another host's folder, and a file of such a name, stay.
    others = [tmp_path / "aiperf_mpi-programs-elsewhere-x", tmp_path / f"{prefix()}link", tmp_path / "kept"]
    others[0].mkdir()
    others[2].mkdir()
    others[1].symlink_to(others[2])
    remove_orphans(tmp_path)
    assert set(tmp_path.iterdir()) == {killed, living, *others}

    child.kill()
    child.communicate(timeout=30)
    remove_orphans(tmp_path)
    assert set(tmp_path.iterdir()) == {living, *others} and (living / "program").exists()


def test_a_folder_removed_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other process removes the first two folders before they are opened, as may happen at any start.
    opened, removed = os.open, []

    def slow(path: Path, flags: int) -> int:
        if len(removed) < 2:
            removed.append(path)
            path.rmdir()
        return opened(path, flags)

    monkeypatch.setattr(os, "open", slow)
    folder, _ = fresh(tmp_path)
    assert folder.is_dir() and len(removed) == 2 and folder not in removed
