# SPDX-License-Identifier: Apache-2.0
"""Shared memory: what is too small for MPI and the windows, and a remedy that is enough."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from aiperf_mpi.planning import shared_memory

MIB = 2**20


def judge(
    monkeypatch: pytest.MonkeyPatch, folder: Path, size: int, used: int, need: int, begun: bool
) -> tuple[str, str, int]:
    """Return level, text with remedy, and the size that is asked for, for a file system of `size` MiB."""
    stat = os.statvfs_result(
        (4096, 4096, size * 256, (size - used) * 256, (size - used) * 256, 0, 0, 0, 0, 255)
    )
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory.os, "statvfs", lambda folder: stat)
        found = shared_memory.judge(need * MIB, str(folder), ranks=3, begun=begun)
    asked = re.search(r"size=([0-9]+)m", found.remedy)
    return found.level, str(found), int(asked[1]) if asked else 0


@pytest.mark.parametrize("need", [2, 46, 500])
@pytest.mark.parametrize("others", [0, 30])
def test_the_size_of_the_remedy_is_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, need: int, others: int
) -> None:
    """Before MPI and after it the same size is asked for, and with this size there is no finding."""
    level, text, asked = judge(monkeypatch, tmp_path, others + 4, others, need, False)
    assert level == "fail" and "MPI takes 4 MiB for 3 ranks, and the windows take" in text
    later, _, again = judge(monkeypatch, tmp_path, others + 5, others + 4, need, True)
    assert later == "fail" and asked == again
    assert judge(monkeypatch, tmp_path, asked, others, need, False)[0] == "ok"
    assert judge(monkeypatch, tmp_path, asked, others + 4, need, True)[0] == "ok"


def test_a_smaller_history_is_advised_where_it_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "history_capacity" not in judge(monkeypatch, tmp_path, 4, 3, 2, True)[1]
    assert "history_capacity" in judge(monkeypatch, tmp_path, 30, 4, 46, True)[1]
