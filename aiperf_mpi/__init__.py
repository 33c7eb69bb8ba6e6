# SPDX-License-Identifier: Apache-2.0
"""aiperf_mpi: automated machine learning on a whole machine, as a benchmark, in one MPI program."""

__version__ = "0.2.0.dev0"

import sys

# A Python of a system may be so old that it cannot even read the other modules: keep this file plain.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.stderr.write(
        "aiperf_mpi: %s is Python %d.%d, but this program needs 3.11 to 3.13; activate its environment "  # noqa: UP031
        "(source .venv/bin/activate, after bin/setup-environment), or load another Python\n"
        % ((sys.executable,) + tuple(sys.version_info[:2]))
    )
    sys.exit(2)
