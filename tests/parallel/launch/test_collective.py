# SPDX-License-Identifier: Apache-2.0
"""Agreements on several ranks, and what keeps their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.parallel.mpi import BOTH

Reports = list[dict[str, Any]]


@pytest.mark.mpi
@BOTH
def test_values_live_until_the_agreement_is_complete(mpi: str, run_program: Callable[..., Reports]) -> None:
    """Each rank gives 1 + its rank in arrays that nothing else keeps, and then uses their memory again."""
    reports = run_program(mpi, 3, "launch/short_lived")
    assert all(report["lowest"] == [1.0] * 200 for report in reports)
