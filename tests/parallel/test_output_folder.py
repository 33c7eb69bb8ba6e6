# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run whose process ends while it makes the folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiperf_mpi import ending
from aiperf_mpi.config import load
from aiperf_mpi.parallel import preflight
from aiperf_mpi.parallel.launch.launcher import LaunchError
from aiperf_mpi.results.output.client import WriterClient

RANKS: Any = SimpleNamespace(n_replicas=1)


@pytest.mark.parametrize("pause", [0.0, 1.5])
def test_an_end_while_the_folder_is_made_leaves_nothing(
    pause: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system takes `pause` seconds; the clean-up waits a second, and the writer removes nothing."""
    process, writer, make = ending.Process(rank=0, host="n"), WriterClient.start(), os.mkdir
    process.cleanups.append(writer.withdraw)
    monkeypatch.setattr(preflight, "process", process)
    ender = threading.Thread(target=process.clean)

    def slow(path: Path, mode: int = 0o777) -> None:
        if not ender.is_alive():
            ender.start()
            ender.join(pause)
        make(path, mode)

    monkeypatch.setattr("os.mkdir", slow)
    config = load("demo", output=str(tmp_path / "run"))
    with pytest.raises(LaunchError):
        preflight.make_output(config, RANKS, writer)
    ender.join(20)
    assert process.cleaned and list(tmp_path.iterdir()) == []
