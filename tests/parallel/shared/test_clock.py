# SPDX-License-Identifier: Apache-2.0
"""The core clock: one time on all ranks, whatever their own clocks say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.parallel.mpi import Reports


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_offsets_are_measured_within_their_bounds(
    mpi: str, ranks: int, run_program: Callable[..., Reports]
) -> None:
    for found in run_program(mpi, ranks, "shared/clocks"):
        # The clocks are the host's plus a known skew: the truth must lie within the bound, and the bound be
        # useful.
        assert abs(found["offset"] - found["skew"]) <= found["uncertainty"] + 1e-9
        assert found["uncertainty"] < 0.05
        assert found["at"] == pytest.approx(2.5, abs=1e-6)
        # All ranks' origins are one moment, behind the measurement and before now.
        assert abs(found["origin"] - found["skew"]) <= found["uncertainty"] + 1e-9
        assert 0 < found["now"] < 60
