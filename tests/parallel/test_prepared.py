# SPDX-License-Identifier: Apache-2.0
"""What rank 0 makes before MPI's initialisation, and the time that it takes."""

from __future__ import annotations

import time

import pytest

from aiperf_mpi.config import Config
from aiperf_mpi.parallel import prepared
from aiperf_mpi.results.output.client import WriterClient

SECONDS = 0.3


def test_all_time_before_mpi_is_in_the_phase_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """V13 binds them to the wall time within 2%, also of a short run after a slow inventory."""

    def slow() -> dict[str, str]:
        time.sleep(SECONDS)
        return {}

    monkeypatch.setattr(prepared, "describe_machine", slow)
    monkeypatch.setattr(prepared.process, "rank", 0)
    monkeypatch.setattr(prepared.process, "cleanups", [])
    found = prepared.prepare(Config(), Config)
    assert isinstance(found.writer, WriterClient)
    seconds, wall = found.timer.seconds, time.monotonic() - found.started
    found.drop()
    assert seconds["init"] == sum(seconds.values()) >= SECONDS
    assert seconds["init"] == pytest.approx(wall, rel=0.01)
