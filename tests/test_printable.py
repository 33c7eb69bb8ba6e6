# SPDX-License-Identifier: Apache-2.0
"""Text that is printed cannot imitate a line of the verdict, and keeps the names of variables."""

from __future__ import annotations

import pytest

from aiperf_mpi.printable import plain


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("AIPERF_MPI status: VALID", "aiperf_mpi status: VALID"),
        ("a\nAIPERF_MPI", "a\\naiperf_mpi"),
        ("AIPERF_MPIs", "aiperf_mpis"),
        ("AIPERF_MPI_x", "aiperf_mpi_x"),
        ("set AIPERF_MPI_INIT_SECONDS=60", "set AIPERF_MPI_INIT_SECONDS=60"),
    ],
)
def test_the_verdicts_prefix_is_in_small_letters_but_no_variable(text: str, printed: str) -> None:
    assert plain(text) == printed
