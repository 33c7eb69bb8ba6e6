# SPDX-License-Identifier: Apache-2.0
"""The core clock: one time on all ranks, whatever the zeros of their own clocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.parallel.mpi import Reports


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_offsets_are_measured_within_their_bounds(
    mpi: str, ranks: int, run_program: Callable[..., Reports]
) -> None:
    for report in run_program(mpi, ranks, "shared/clocks"):
        # The clocks are the host's plus a known skew: the truth must be within the bound, and the bound small
        # enough.
        assert abs(report["offset"] - report["skew"]) <= report["uncertainty"] + 1e-9
        assert report["uncertainty"] < 0.05
        assert report["at"] == 2.5
        # All ranks' origins are one moment, after the measurement and before now.
        assert abs(report["origin"] - report["skew"]) <= report["uncertainty"] + 1e-9
        assert 0 < report["now"] < 60
