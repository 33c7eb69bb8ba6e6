# SPDX-License-Identifier: Apache-2.0
"""History and claims over windows pass the same checks as their twins in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.parallel import contract
from tests.helpers.parallel.mpi import BOTH, Reports
from tests.helpers.trials.twins import ArrayClaims, ArrayHistory

LOG_CHECKS = {**contract.HISTORY_CHECKS, **contract.HOST_CHECKS}


@pytest.mark.parametrize("name", LOG_CHECKS)
def test_history_in_memory(name: str) -> None:
    LOG_CHECKS[name](ArrayHistory(contract.CAPACITY))


@pytest.mark.parametrize("name", contract.CLAIM_CHECKS)
def test_claims_in_memory(name: str) -> None:
    contract.CLAIM_CHECKS[name](ArrayClaims(contract.CAPACITY))


@pytest.mark.mpi
@BOTH
@pytest.mark.parametrize(
    "ranks", [pytest.param(1, marks=pytest.mark.full), pytest.param(2, marks=pytest.mark.full), 4]
)
def test_history_and_claims_over_windows(mpi: str, ranks: int, run_program: Callable[..., Reports]) -> None:
    reports = run_program(mpi, ranks, "shared/contract_over_mpi")
    results = {name: result for report in reports for name, result in report["results"].items()}
    assert set(results) == {*LOG_CHECKS, *contract.CLAIM_CHECKS}
    failed = [f"{name}:\n{result}" for name, result in results.items() if result != "passed"]
    assert not failed, "\n".join(failed)
