# SPDX-License-Identifier: Apache-2.0
"""Steps that the tests of this folder share."""

from __future__ import annotations

import pytest

from aiperf_mpi.training.steps.compile import Compiled
from tests.helpers.training.cases import compiled_tiny


@pytest.fixture(scope="session")
def tiny() -> Compiled:
    """Compile the steps of the tiny base network, once for all tests of this folder."""
    return compiled_tiny()
