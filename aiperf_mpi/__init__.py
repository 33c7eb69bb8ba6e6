# SPDX-License-Identifier: Apache-2.0
"""aiperf_mpi: automated machine learning on a whole machine, as a benchmark, in one MPI program."""

__version__ = "0.2.0.dev0"
